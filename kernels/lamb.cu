// LAMB (You et al., "Large batch optimization for deep learning", ICLR 2020): the rule of src/optim/lamb.rs.
//
// Maths: g = gradient / max(1, norm of all / max_norm);  m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
//     u = m / bias1 / (sqrt(v) / sqrt(bias2) + eps) + decay w
//     w -= lr r u      r = |w| / |u| of the tensor, if both are positive and the tensor adapts, else 1      shadow = bf16(w)
//
// Memory: tensors of any sizes by the table of tile/multi_tensor.cuh: w, g, m, v f32, shadow bf16.
//
//     grid.x -> chunks of 8192 elements      block -> 256 threads, thread -> 2 groups of 4 elements at a time
//     moments: m, v, and the squares of u and w of every chunk      update: adds those of its tensor, then changes w
//
// Numerics: f32; norms in f64, chunk by chunk; ratio and factors in f64, rounded once. u is computed twice, which costs less
// than to keep it.
//
// Limits (H100, predicted; simulated only): 24 + 18 bytes an element, about 40 operations: memory, 3.35 TB/s.
#include "tile/multi_tensor.cuh"

// As in Rust: `untaped::lamb::Params`.
struct LambParams {
    Updates u;
    double max_norm; // 0: no limit
    double weight_decay;
    float one_b1, b2, one_b2, eps;
    int trust_clip, always_adapt;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(LambParams) == PARAMS_BYTES, "the host passes another struct");
#endif

struct Direction {
    float bias, root, eps, decay;

    __device__ __forceinline__ Direction(const LambParams &p, const ChunkUpdate &c)
        : bias(p.u.scalars->bias_1), root(p.u.scalars->root_bias_2), eps(p.eps),
          decay(c.tensor.decays ? static_cast<float>(p.weight_decay) : 0.0f) {}

    __device__ __forceinline__ float of(const Item &e) const {
        const float denominator = sqrtf(e.second) / root + eps;
        const float adam = denominator > 0.0f ? e.first / bias / denominator : 0.0f;
        return fmaf(decay, e.value, adam);
    }
};

extern "C" __global__ void __launch_bounds__(UPDATE_THREADS)
    lamb_moments(const __grid_constant__ LambParams p) {
    const ChunkUpdate c(p.u);
    if (!c.runs) return;
    const double over = p.max_norm > 0.0 ? c.verdict.clipped_norm / p.max_norm : 1.0;
    const float divisor = static_cast<float>(fmax(over, 1.0));
    const Direction direction(p, c);
    const double2 sums = visit<VALUE | GRAD | FIRST | SECOND, FIRST | SECOND, false>(c.chunk, [&](Item &e) {
        const float g = c.gradient(e.grad) / divisor;
        e.first = fmaf(g - e.first, p.one_b1, e.first);
        e.second = fmaf(e.second, p.b2, g * g * p.one_b2);
        return make_float2(direction.of(e), e.value);
    });
    keep_sums(p.u.tensor_sums, sums);
}

extern "C" __global__ void __launch_bounds__(UPDATE_THREADS)
    lamb_update(const __grid_constant__ LambParams p) {
    const ChunkUpdate c(p.u);
    double2 sums = make_double2(0.0, 0.0);
    if (c.runs) {
        double ratio = 1.0;
        if (p.always_adapt || (c.tensor.decays && p.weight_decay != 0.0)) {
            const double2 squares = sum_pairs<UPDATE_THREADS>(p.u.tensor_sums + c.tensor.first_chunk, c.tensor.chunks);
            if (squares.x > 0.0 && squares.y > 0.0) ratio = sqrt(squares.y) / sqrt(squares.x);
            if (p.trust_clip) ratio = fmin(ratio, 1.0);
        }
        const float size = static_cast<float>(c.lr * ratio);
        const Direction direction(p, c);
        sums = visit<VALUE | FIRST | SECOND, VALUE, true>(c.chunk, [&](Item &e) {
            const float old = e.value;
            e.value = fmaf(-size, direction.of(e), old);
            return make_float2(e.value - old, e.value);
        });
    }
    keep_sums(p.u.squares, sums);
}
