// What the depthwise convolution kernels share: their parameter, and the path of weights into shared memory.
#pragma once
#include "tile/types.cuh"

// x [n, h, w, c], y [n, ho, wo, c], weights [c, kh, kw]. The forward pass reads x, weight and bias and writes y; dgrad
// reads y (the gradient) and weight and writes x; wgrad reads x and y and writes weight, which then is f32
// [parts, c, kh, kw] with parts = gridDim.y. A null bias is none.
struct DepthwiseParams {
    u64 x, weight, bias, y;
    int n, h, w, c;
    int ho, wo, kh, kw;
    int stride_h, stride_w, pad_h, pad_w;
    int dilation_h, dilation_w;
    int segment, reserved; // rows of a task of conv2d_depthwise_7x7; nothing
};
#ifdef PARAMS_BYTES
static_assert(sizeof(DepthwiseParams) == PARAMS_BYTES, "the host passes another struct");
#endif

namespace depthwise {

// Channels of a block: 128 bytes of f32, 64 of bf16.
constexpr int CHANNELS = 32;

// Calls visit(channel, tap, weight) for the block's channels, of which `channels` exist; the threads share the work.
// The weights of a block are one run of memory, read 16 bytes at a time if WIDE (channels * taps a multiple of a chunk).
template <bool WIDE, typename E, typename Visit>
static __device__ __forceinline__ void each_weight(const E *weight, int channels, int taps, Visit visit) {
    const int total = channels * taps;
    if constexpr (WIDE) {
        constexpr int SIZE = Chunk<E>::SIZE;
        for (int i = threadIdx.x * SIZE; i < total; i += blockDim.x * SIZE) {
            float v[SIZE];
            load_chunk(v, weight + i);
            int channel = i / taps, tap = i - channel * taps;
#pragma unroll
            for (int k = 0; k < SIZE; ++k) {
                visit(channel, tap, v[k]);
                if (++tap == taps) tap = 0, ++channel;
            }
        }
    } else {
        for (int i = threadIdx.x; i < total; i += blockDim.x) visit(i / taps, i % taps, to_float(weight[i]));
    }
}

} // namespace depthwise
