// Depthwise convolution of any kernel, stride, padding, dilation and number of channels, f32 or bf16. 7x7 with stride 1 has
// kernels of its own.
//
// Maths, for every channel alone:
//
//     fwd     y[i, j]  = bias + sum over r, s of x[i*stride + r*dilation - pad, j.. + s..] * w[r, s]
//     dgrad   dx[i, j] = sum over r, s of dy[a, b] * w[r, s] where a*stride + r*dilation - pad = i, b alike
//     wgrad   dw[r, s] = sum over i, j of dy[i, j] * x[i*stride + r*dilation - pad, j.. + s..]
//
// Memory: x [n, h, w, c], y [n, ho, wo, c], w [c, kh, kw] of T; bias [c] f32 or null; wgrad writes f32 [gridDim.y, c, kh, kw],
// which wgrad_reduce adds up (also for the 7x7 kernels).
//
//     grid.x: 32 channels
//     block -> 256 threads: LANES across the channels (16 bytes each with VEC, else one), SLOTS rows of them
//     fwd, dgrad: grid.y workers, each with SLOTS * 4 pixels, and again; thread -> pixels slot, slot + SLOTS, ..; weights of the block in
//                 shared memory as [tap][channel], each read once for four pixels
//     wgrad:      grid.y parts of the pixels, grid.z groups of SLOTS taps; thread -> one tap, all pixels of the part in order
//
//         lane   0    1    2  ..          lane   0    1    2  ..
//      slot 0  |c0-3|c4-7|c8-11  pixel p   slot 0 |c0-3|c4-7|   tap 0
//      slot 1  |                 p + 1     slot 1 |             tap 1
//
// Numerics: f32 FMA, rounded to T once; `=`. Fixed orders: the same bits in every run.
//
// Limits (H100, predicted; simulated only): 2 * sizeof(T) bytes an element at least. The reads of a tap come from the first-level
// cache, 16 bytes for 4 or 8 FMA: its 128 bytes a clock bound 3x3 in f32 to 0.8e12 elements/s (memory: 0.42e12/s) and wgrad, which
// reads two elements for an FMA, to 0.4e12/s for 3x3.
#include "tile/column_sum.cuh"
#include "tile/depthwise.cuh"

#ifndef VEC
#define VEC 1
#endif

namespace {

constexpr int CHANNELS = depthwise::CHANNELS, THREADS = 256;
// Channels of a thread, threads across the channels of a block, and how many such rows of threads there are.
constexpr int EACH = VEC ? Chunk<T>::SIZE : 1, LANES = CHANNELS / EACH, SLOTS = THREADS / LANES;
// Outputs of a thread: each weight that is read from shared memory serves them all.
constexpr int PIXELS = 4;

template <typename E> static __device__ __forceinline__ void load(float (&v)[EACH], const E *p) {
    if constexpr (VEC)
        load_chunk(v, p);
    else
        v[0] = to_float(*p);
}

template <typename E> static __device__ __forceinline__ void store(E *p, const float (&v)[EACH]) {
    if constexpr (VEC)
        store_chunk(p, v);
    else
        *p = from_float<E>(v[0]);
}

struct Pixel {
    int image, row, column;
    bool exists;

    Pixel() = default;
    __device__ __forceinline__ Pixel(int index, int images, int h, int w) {
        const int line = index / w;
        column = index - line * w;
        image = line / h;
        row = line - image * h;
        exists = image < images;
    }
};

// Which pixel of the source an output pixel reads through a tap: along one axis, -1 if none.
struct Axis {
    int size, stride, pad, dilation;

    // Forward: output o reads input o * stride + k * dilation - pad.
    __device__ __forceinline__ int input(int o, int k) const {
        const int i = o * stride + k * dilation - pad;
        return static_cast<u32>(i) < static_cast<u32>(size) ? i : -1;
    }

    // Gradient: input i was read through tap k by the output o with o * stride + k * dilation - pad = i.
    __device__ __forceinline__ int reader(int i, int k) const {
        const int at = i + pad - k * dilation;
        return at >= 0 && at % stride == 0 && at / stride < size ? at / stride : -1;
    }
};

// to[n, i, j, c] = bias[c] + sum over taps of from[n, source(i, r), source(j, s), c] * w[c, r, s]
template <bool GRADIENT>
static __device__ __forceinline__ void sum_taps(const T *from, int from_h, int from_w, T *to, int to_h, int to_w,
                                                const DepthwiseParams &p) {
    extern __shared__ __align__(16) float weights[]; // [tap][channel]
    const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    const int c0 = blockIdx.x * CHANNELS, channels = min(CHANNELS, p.c - c0), taps = p.kh * p.kw;
    depthwise::each_weight<VEC != 0>(reinterpret_cast<const T *>(p.weight) + static_cast<size_t>(c0) * taps, channels, taps,
                                     [&](int channel, int tap, float v) { weights[tap * CHANNELS + channel] = v; });
    __syncthreads();
    const int mine = lane * EACH, c = c0 + mine;
    if (mine >= channels) return;

    const Axis down = {from_h, p.stride_h, p.pad_h, p.dilation_h}, across = {from_w, p.stride_w, p.pad_w, p.dilation_w};
    float start[EACH] = {};
    if (!GRADIENT && p.bias) {
        const float *const bias = reinterpret_cast<const float *>(p.bias) + c;
        if constexpr (VEC) {
#pragma unroll
            for (int k = 0; k < EACH; k += 4) {
                float v[4];
                load_chunk(v, bias + k);
                start[k] = v[0], start[k + 1] = v[1], start[k + 2] = v[2], start[k + 3] = v[3];
            }
        } else {
            start[0] = *bias;
        }
    }
    const size_t image = static_cast<size_t>(from_h) * from_w * p.c;
    const int pixels = p.n * to_h * to_w, turn = gridDim.y * (SLOTS * PIXELS);
    for (int first = blockIdx.y * (SLOTS * PIXELS) + slot; first < pixels; first += turn) {
        Pixel pixel[PIXELS];
        float sum[PIXELS][EACH];
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            pixel[i] = Pixel(first + i * SLOTS, p.n, to_h, to_w);
#pragma unroll
            for (int k = 0; k < EACH; ++k) sum[i][k] = start[k];
        }
        for (int r = 0; r < p.kh; ++r) {
            int y[PIXELS];
#pragma unroll
            for (int i = 0; i < PIXELS; ++i) {
                y[i] = GRADIENT ? down.reader(pixel[i].row, r) : down.input(pixel[i].row, r);
                if (!pixel[i].exists) y[i] = -1;
            }
            for (int s = 0; s < p.kw; ++s) {
                float w[EACH];
#pragma unroll
                for (int k = 0; k < EACH; ++k) w[k] = weights[(r * p.kw + s) * CHANNELS + mine + k];
#pragma unroll
                for (int i = 0; i < PIXELS; ++i) {
                    const int x = GRADIENT ? across.reader(pixel[i].column, s) : across.input(pixel[i].column, s);
                    if (x < 0 || y[i] < 0) continue;
                    float v[EACH];
                    load(v, from + pixel[i].image * image + (static_cast<i64>(y[i]) * from_w + x) * p.c + c);
#pragma unroll
                    for (int k = 0; k < EACH; ++k) sum[i][k] = fmaf(v[k], w[k], sum[i][k]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < PIXELS; ++i)
            if (pixel[i].exists) store(to + static_cast<i64>(first + i * SLOTS) * p.c + c, sum[i]);
    }
}

} // namespace

#if PASS_FWD
extern "C" __global__ void __launch_bounds__(THREADS) conv2d_depthwise_fwd(const __grid_constant__ DepthwiseParams p) {
    sum_taps<false>(reinterpret_cast<const T *>(p.x), p.h, p.w, reinterpret_cast<T *>(p.y), p.ho, p.wo, p);
}
#elif PASS_DGRAD
extern "C" __global__ void __launch_bounds__(THREADS, 2) conv2d_depthwise_dgrad(const __grid_constant__ DepthwiseParams p) {
    sum_taps<true>(reinterpret_cast<const T *>(p.y), p.ho, p.wo, reinterpret_cast<T *>(p.x), p.h, p.w, p);
}
#elif PASS_WGRAD
// A thread has one tap (tap group blockIdx.z) and EACH channels, and goes through the output pixels of part blockIdx.y.
extern "C" __global__ void __launch_bounds__(THREADS) conv2d_depthwise_wgrad(const __grid_constant__ DepthwiseParams p) {
    const int lane = threadIdx.x % LANES, tap = blockIdx.z * SLOTS + threadIdx.x / LANES, taps = p.kh * p.kw;
    const int c = blockIdx.x * CHANNELS + lane * EACH;
    if (c >= p.c || tap >= taps) return;
    const Axis down = {p.h, p.stride_h, p.pad_h, p.dilation_h}, across = {p.w, p.stride_w, p.pad_w, p.dilation_w};
    const int r = tap / p.kw, s = tap % p.kw;
    const int pixels = p.n * p.ho * p.wo, length = (pixels + gridDim.y - 1) / gridDim.y;
    const int begin = blockIdx.y * length, end = min(begin + length, pixels);
    const T *const x = reinterpret_cast<const T *>(p.x) + c, *const gradient = reinterpret_cast<const T *>(p.y) + c;
    const size_t image = static_cast<size_t>(p.h) * p.w * p.c;

    float sum[EACH] = {};
    Pixel at(begin, p.n, p.ho, p.wo);
    for (int i = begin; i < end; ++i) {
        const int row = down.input(at.row, r), column = across.input(at.column, s);
        if (row >= 0 && column >= 0) {
            float v[EACH], g[EACH];
            load(v, x + at.image * image + (static_cast<i64>(row) * p.w + column) * p.c);
            load(g, gradient + static_cast<i64>(i) * p.c);
#pragma unroll
            for (int k = 0; k < EACH; ++k) sum[k] = fmaf(v[k], g[k], sum[k]);
        }
        if (++at.column == p.wo) {
            at.column = 0;
            if (++at.row == p.ho) at.row = 0, ++at.image;
        }
    }
    float *const to = reinterpret_cast<float *>(p.weight) + (static_cast<size_t>(blockIdx.y) * p.c + c) * taps + tap;
#pragma unroll
    for (int k = 0; k < EACH; ++k) to[k * taps] = sum[k];
}
#elif PASS_WGRAD_REDUCE
// The parts of a weight gradient [parts, c * kh * kw], added in order.
extern "C" __global__ void __launch_bounds__(column_sum::THREADS)
    conv2d_depthwise_wgrad_reduce(const __grid_constant__ ColumnSumParams p) {
    column_sum::run<float, VEC != 0>(reinterpret_cast<const float *>(p.in), p.rows, p.columns,
                                     reinterpret_cast<float *>(p.out));
}
#endif
