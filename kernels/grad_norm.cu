// Norms over all tensors, from the squares of their chunks; how far the gradient is clipped, and whether the step may be done.
//
// Maths: norm = mean sqrt(sum of squares)          mean = 1 / parts of the batch
//     clip = min(1, max_norm / (norm + 1e-6))      1 without a limit
//     finite = the sum of squares and the loss are finite
//     report: [norm of the gradient before clipping, of the change, of the parameters, finite ? 1 : 0]
//
// Memory: squares f64 [chunks] of gradients, f64 [chunks, 2] of change and value; loss f32 or none; report f32 [4].
//
//     one block of 512 threads, thread -> every 512th chunk, then lanes, then warps
//
// Numerics: f64. A step that is not finite reports no change and NaN for the norm of the parameters, which nobody made.
//
// Limits (H100, predicted; simulated only): 8 and 16 bytes a chunk of 8192 elements, a millionth of a step's memory: the
// latency of a launch and some loads, a few microseconds.
#include "tile/multi_tensor.cuh"

constexpr int THREADS = 512;

// As in Rust: `untaped::grad_norm::Params`.
struct GradNormParams {
    const double *grads;
    const double2 *squares;
    const float *loss;
    Verdict *verdict;
    float *report;
    double max_norm; // 0: no limit
    float mean;
    int chunks;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(GradNormParams) == PARAMS_BYTES, "the host passes another struct");
#endif

// A difference with itself is NaN for what is not finite.
static __device__ __forceinline__ bool is_finite(double v) { return v - v == 0.0; }

extern "C" __global__ void __launch_bounds__(THREADS)
    grad_norm_clip(const __grid_constant__ GradNormParams p) {
    const double sum = sum_numbers<THREADS>(p.grads, p.chunks);
    if (threadIdx.x != 0) return;
    Verdict v;
    v.norm = sqrt(sum) * p.mean;
    const double factor = p.max_norm / (v.norm + 1e-6);
    v.mean = p.mean;
    v.clip = p.max_norm > 0.0 && factor < 1.0 ? static_cast<float>(factor) : 1.0f;
    v.clipped_norm = v.norm * v.clip;
    v.finite = is_finite(sum) && (!p.loss || is_finite(*p.loss));
    v.pad = 0;
    *p.verdict = v;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    grad_norm_report(const __grid_constant__ GradNormParams p) {
    const bool finite = p.verdict->finite;
    double2 sum = make_double2(0.0, __longlong_as_double(0x7ff8000000000000ll));
    if (finite) sum = sum_pairs<THREADS>(p.squares, p.chunks);
    if (threadIdx.x != 0) return;
    p.report[0] = static_cast<float>(p.verdict->norm);
    p.report[1] = static_cast<float>(sqrt(sum.x));
    p.report[2] = static_cast<float>(sqrt(sum.y));
    p.report[3] = finite ? 1.0f : 0.0f;
}
