// Sums over lanes and over blocks, always in the same order.
#pragma once
#include "ptx/memory.cuh"

// Sum over the `lanes` threads (a power of two) that stand together in a warp; the first has the result.
static __device__ __forceinline__ float sum_lanes(float v, int lanes) {
    for (int o = lanes >> 1; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}

// Sums of COUNT numbers over the THREADS (a power of two) threads of a block, as a tree; every thread has them.
template <int THREADS, int COUNT>
static __device__ __forceinline__ void sum_block(double (&v)[COUNT], double (&board)[COUNT][THREADS]) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < COUNT; k++) board[k][threadIdx.x] = v[k];
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half >>= 1) {
        if (threadIdx.x < half) {
#pragma unroll
            for (int k = 0; k < COUNT; k++) board[k][threadIdx.x] += board[k][threadIdx.x + half];
        }
        __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++) v[k] = board[k][0];
}
