// Weighted sum of numbers, and its gradients.
//
// Maths: fwd   y = sum over i of w_i x_i     bwd   gx_i = w_i gy
//
// Memory: every number f32 on its own; up to 16 in a launch.
//
//     one block of one warp, whose first thread does it all
//
// Numerics: fwd sums in f64 in the order of the inputs and rounds once; bwd one multiplication in f32; `=`.
//
// Limits (H100, predicted; simulated only): 68 bytes at most: the launch itself, some microseconds.
#include "ptx/memory.cuh"

constexpr int MOST = 16;

// As in Rust: `ops::weighted_sum::Params`.
struct WeightedSumParams {
    u64 number[MOST]; // x or gx; null: not wanted
    float weight[MOST];
    u64 whole; // y or gy
    int count;
    int pad;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(WeightedSumParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(32) weighted_sum_fwd(const __grid_constant__ WeightedSumParams p) {
    if (threadIdx.x) return;
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < MOST; ++i)
        if (i < p.count) sum += static_cast<double>(p.weight[i]) * *reinterpret_cast<const float *>(p.number[i]);
    *reinterpret_cast<float *>(p.whole) = static_cast<float>(sum);
}

extern "C" __global__ void __launch_bounds__(32) weighted_sum_bwd(const __grid_constant__ WeightedSumParams p) {
    if (threadIdx.x) return;
    const float gy = *reinterpret_cast<const float *>(p.whole);
#pragma unroll
    for (int i = 0; i < MOST; ++i)
        if (i < p.count && p.number[i]) *reinterpret_cast<float *>(p.number[i]) = p.weight[i] * gy;
}
