// 2-D convolution on NHWC images as implicit GEMM on tensor cores (bf16) or by fma (f32).
//
// Maths
//     fwd    y[n, i, j, o]   = act(scale[o] * (b[o] + sum over segments, r, s, c of
//                              x[n, i*stride + r*dilation - pad, j*.., c] w[o, r, s, c]) + residual[n, i, j, o])
//     dgrad  dx[n, h, w, c]  = sum over r, s, o of gy[n, (h + pad - r*dilation)/stride, .., o] w[o, r, s, c]
//     wgrad  dw[o, r, s, c]  = sum over n, i, j of gy[n, i, j, o] x[n, i*stride + r*dilation - pad, .., c]
//     A segment is one input of the sum: the parts of a concatenation, the 1x1 skip of a residual block. `DOUBLED` convolves
//     the nearest-neighbour doubling of x with 3x3 taps as four 2x2 convolutions of x itself: taps that meet in one pixel
//     of x are added beforehand by `fold_doubled`.
//
// Shapes and memory order
//     x [n, h, w, ci], y [n, ho, wo, co], w [co, kh, kw, ci / groups], bias and scale [co] f32; elements T = bf16 or f32.
//     dw f32. Pixels of x may lie further apart than its channels, weights of a segment further than theirs.
//     statistics [n, co] (mean, m2) f32 of y as written.
//
// Picture (fwd; dgrad has input channels for n, wgrad pixels for k)
//
//                     n: output channels                grid    x: tiles, n fastest, so that blocks side by side share rows
//                   +------+------+------+                      y: groups x phases    z: splits of k
//                   |  W   |      |      |  k           block   BM x BN of y in registers, BK of k per step
//                   +------+------+------+              warp    WM x WN    (tile/gemm_mainloop.cuh)
//        +------+   +------+------+------+              thread  copies: chunks of fixed channel, every ROW_STEP-th pixel
//     m: |  x   |   | y    |      |      |                      (tile/gather_gemm.cuh, tile/pixel_gemm.cuh)
//     pix|gather|   +------+------+------+
//        +------+   |      |      |      |              split > 1: f32 sums of every split, added in order by
//            k      +------+------+------+                         conv2d_split_output / conv2d_split_weight
//
// Numerics
//     bf16: exact products, f32 sums on tensor cores; f32: fma. Each output is summed by one thread in one order; splits are
//     added in order. One rounding to T at the end. Everything is written with `=`. The same bits at every run.
//
// Limits
//     FLOPs 2 n ho wo co kh kw ci / groups. Global memory: x is read once per column of tiles and tap (mostly from L2), w once
//     per row of tiles, y written once. 128x256x64 (bf16): 48 KiB per 4.2 MFLOP, 43 FLOP a byte from L2 to shared memory: on an
//     H100 mma.sync is bound by tensor issue, below the rate of wgmma. Registers, shared memory and counters of every
//     variant: docs/kernels.md. Simulated only: no card has run this yet.
//
// Defines: PASS_*, T_BF16, WIDTH (elements of a copy), BM BN BK WM WN STAGES BLOCKS (tile), STATS, DOUBLED.
#if PASS_FWD || PASS_DGRAD

#include "tile/gather_gemm.cuh"
static_assert(sizeof(GatherParams) == PARAMS_BYTES, "as in Rust");

#if PASS_FWD
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv2d_fwd(const __grid_constant__ GatherParams p) {
    gather_gemm<K_MAJOR>(p);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv2d_dgrad(const __grid_constant__ GatherParams p) {
    gather_gemm<MN_MAJOR>(p);
}
#endif

#elif PASS_WGRAD

#include "tile/pixel_gemm.cuh"
static_assert(sizeof(PixelParams) == PARAMS_BYTES, "as in Rust");

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv2d_wgrad(const __grid_constant__ PixelParams p) {
    pixel_gemm(p);
}

#elif PASS_SPLIT_OUTPUT

#include "tile/split_sum.cuh"
static_assert(sizeof(SplitOutputParams) == PARAMS_BYTES, "as in Rust");

extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    conv2d_split_output(const __grid_constant__ SplitOutputParams p) {
    split_output(p);
}

#elif PASS_SPLIT_WEIGHT

#include "tile/split_sum.cuh"
static_assert(sizeof(SplitWeightParams) == PARAMS_BYTES, "as in Rust");

extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    conv2d_split_weight(const __grid_constant__ SplitWeightParams p) {
    split_weight(p);
}

#elif PASS_STATISTICS

#include "tile/statistics.cuh"
static_assert(sizeof(StatisticsParams) == PARAMS_BYTES, "as in Rust");

extern "C" __global__ void __launch_bounds__(STATISTICS_THREADS)
    conv2d_statistics(const __grid_constant__ StatisticsParams p) {
    merge_statistics(p);
}

#elif PASS_FOLD_DOUBLED

#include "tile/types.cuh"

// w [co, 3, 3, ci] to the weights [2, 2, co, 2, 2, ci] of the phases (vertical, horizontal):
//
//     of phase 0: tap 0 = w[0], tap 1 = w[1] + w[2]        rows -1 and 0 of x
//     of phase 1: tap 0 = w[0] + w[1], tap 1 = w[2]        rows 0 and +1
struct FoldParams {
    const T *w;
    T *folded;
    int rows, channels; // co, ci
};
static_assert(sizeof(FoldParams) == PARAMS_BYTES, "as in Rust");

constexpr int FOLD_THREADS = 256;

// Grid: 256 threads over (phase, co, tap, ci), ci fastest.
extern "C" __global__ void __launch_bounds__(FOLD_THREADS) conv2d_fold_doubled(const __grid_constant__ FoldParams p) {
    const i64 at = static_cast<i64>(blockIdx.x) * FOLD_THREADS + threadIdx.x;
    const int c = static_cast<int>(at % p.channels);
    i64 rest = at / p.channels;
    const int s = rest & 1, r = rest >> 1 & 1;
    rest >>= 2;
    const i64 row = rest % p.rows;
    const int phase = static_cast<int>(rest / p.rows), a = phase >> 1, b = phase & 1;
    if (phase >= 4) return;
    // First and last tap of w that meet in this one.
    const int top = r == 0 ? 0 : 1 + a, bottom = r == 0 ? a : 2;
    const int left = s == 0 ? 0 : 1 + b, right = s == 0 ? b : 2;
    float sum = 0.0f;
    for (int y = top; y <= bottom; y++)
        for (int x = left; x <= right; x++) sum += to_float(p.w[((row * 3 + y) * 3 + x) * p.channels + c]);
    p.folded[at] = from_float<T>(sum);
}

#endif
