// Exponential moving average of weights: the rule of src/optim/ema.rs.
//
// Maths: average += rate (value - average)      rate = 1 - decay of this update
//
// Memory: tensors of any sizes by the table of tile/multi_tensor.cuh: value, average f32.
//
//     grid.x -> chunks of 8192 elements      block -> 256 threads, thread -> 2 groups of 4 elements at a time
//
// Numerics: f32. A step that is not finite leaves the average as it is.
//
// Limits (H100, predicted; simulated only): 12 bytes an element, 3 operations: memory, 3.35 TB/s.
#include "tile/multi_tensor.cuh"

// As in Rust: `untaped::ema::Params`.
struct EmaParams {
    const TensorChunk *chunks;
    const StepScalars *scalars;
    const Verdict *verdict;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(EmaParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(UPDATE_THREADS)
    ema_update(const __grid_constant__ EmaParams p) {
    if (!p.verdict->finite) return;
    const TensorChunk c = p.chunks[blockIdx.x];
    const float rate = p.scalars->ema_rate;
    visit<VALUE | FIRST, FIRST, false>(c, [&](Item &e) {
        e.first = fmaf(e.value - e.first, rate, e.first);
        return make_float2(0.0f, 0.0f);
    });
}
