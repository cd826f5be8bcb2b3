// Linear layer: matrix products on tensor cores (bf16) or by fma (f32), by the blocks of tile/ that conv2d uses too.
//
// Maths
//     fwd    y[m, o]   = act(scale[o] * (b[o] + sum over segments, i of x[m, i] w[o, i]) + residual[m, o])
//     dgrad  dx[m, i]  = sum over o of gy[m, o] w[o, i]
//     wgrad  dw[o, i]  = sum over m of gy[m, o] x[m, i]
//
// Shapes and memory order
//     x [m, in], w [out, in], y [m, out], bias and scale [out] f32; elements T = bf16 or f32; dw f32. All row-major. A row is
//     an image of one pixel.
//
// Picture
//                     n: out                            grid    x: tiles, n fastest    z: splits of k
//                   +------+------+                     block   BM x BN of y in registers, BK of k per step
//                   |  W^T |      |  k: in              warp    WM x WN    (tile/gemm_mainloop.cuh)
//        +------+   +------+------+                     thread  copies 16 bytes of every ROW_STEP-th row
//     m  |  x   |   |  y   |      |
//        +------+   +------+------+
//
// Numerics
//     As conv2d.cu: f32 sums in one order, one rounding at the end, `=`, the same bits at every run.
//
// Limits
//     FLOPs 2 m in out; bytes x, w, y once each when tiles of a row share L2. Counters: docs/kernels.md. Simulated only: no
//     card has run this yet.
//
// Defines: PASS_*, T_BF16, WIDTH (elements of a copy), BM BN BK WM WN STAGES BLOCKS (tile).
#if PASS_FWD || PASS_DGRAD

#include "tile/gather_gemm.cuh"
static_assert(sizeof(GatherParams) == PARAMS_BYTES, "as in Rust");

#if PASS_FWD
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) linear_fwd(const __grid_constant__ GatherParams p) {
    gather_gemm<K_MAJOR>(p);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) linear_dgrad(const __grid_constant__ GatherParams p) {
    gather_gemm<MN_MAJOR>(p);
}
#endif

#elif PASS_WGRAD

#include "tile/pixel_gemm.cuh"
static_assert(sizeof(PixelParams) == PARAMS_BYTES, "as in Rust");

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) linear_wgrad(const __grid_constant__ PixelParams p) {
    pixel_gemm(p);
}

#elif PASS_SPLIT_OUTPUT

#include "tile/split_sum.cuh"
static_assert(sizeof(SplitOutputParams) == PARAMS_BYTES, "as in Rust");

extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    linear_split_output(const __grid_constant__ SplitOutputParams p) {
    split_output(p);
}

#elif PASS_SPLIT_WEIGHT

#include "tile/split_sum.cuh"
static_assert(sizeof(SplitWeightParams) == PARAMS_BYTES, "as in Rust");

extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    linear_split_weight(const __grid_constant__ SplitWeightParams p) {
    split_weight(p);
}

#endif
