// LARS (You, Gitman, Ginsburg, "Large batch training of convolutional networks", 2017): the rule of src/optim/lars.rs.
//
// Maths: r = trust |w| / (|g| + decay |w| + eps) of the tensor, 1 where it does not adapt
//     b = momentum b + enters r (g + decay w);  w -= lr (nesterov ? r (g + decay w) + momentum b : b)      shadow = bf16(w)
//
// Memory: tensors of any sizes by the table of tile/multi_tensor.cuh: w, g, b f32, shadow bf16.
//
//     grid.x -> chunks of 8192 elements      block -> 256 threads, thread -> 2 groups of 4 elements at a time
//     norms: the squares of w of every chunk      update: adds those of its tensor, and of its gradient, then changes b, w
//
// Numerics: f32; norms in f64, chunk by chunk; ratio in f64, rounded once.
//
// Limits (H100, predicted; simulated only): 4 + 22 bytes an element, about 12 operations: memory, 3.35 TB/s.
#include "tile/momentum.cuh"

// As in Rust: `untaped::lars::Params`.
struct LarsParams {
    Updates u;
    double weight_decay, trust, eps;
    Momentum momentum;
    int trust_clip, always_adapt, apex, pad;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(LarsParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(UPDATE_THREADS)
    lars_norms(const __grid_constant__ LarsParams p) {
    const ChunkUpdate c(p.u);
    if (!c.runs) return;
    keep_sums(p.u.tensor_sums, visit<VALUE, 0, false>(c.chunk, [](Item &e) { return make_float2(e.value, 0.0f); }));
}

extern "C" __global__ void __launch_bounds__(UPDATE_THREADS)
    lars_update(const __grid_constant__ LarsParams p) {
    const ChunkUpdate c(p.u);
    if (!c.runs) {
        if (threadIdx.x == 0) p.u.squares[blockIdx.x] = make_double2(0.0, 0.0);
        return;
    }
    double decay = c.tensor.decays ? p.weight_decay : 0.0, ratio = 1.0;
    if (decay != 0.0 || p.always_adapt || p.apex) {
        const int first = c.tensor.first_chunk, chunks = c.tensor.chunks;
        const double w = sqrt(sum_pairs<UPDATE_THREADS>(p.u.tensor_sums + first, chunks).x);
        const double scale = static_cast<double>(c.verdict.mean) * c.verdict.clip;
        const double g = sqrt(sum_numbers<UPDATE_THREADS>(p.u.grads + first, chunks)) * scale;
        const bool adapts = w > 0.0 && g > 0.0;
        if (adapts)
            ratio = p.trust * w / (g + w * decay + p.eps);
        else if (p.apex)
            decay = 0.0;
        // At learning rate 0 the quotient is infinite and the limit holds.
        if (p.trust_clip && (adapts || !p.apex)) ratio = fmin(ratio / c.lr, 1.0);
    }
    momentum_step(p.u, c, p.momentum, static_cast<float>(decay), static_cast<float>(ratio));
}
