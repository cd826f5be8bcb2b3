// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019): the rule of src/optim/adamw.rs.
//
// Maths: m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
//     w = w (1 - lr decay) - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)      shadow = bf16(w)
//
// Memory: tensors of any sizes by the table of tile/multi_tensor.cuh: w, g, m, v f32, shadow bf16.
//
//     grid.x -> chunks of 8192 elements      block -> 256 threads, thread -> 2 groups of 4 elements at a time
//
// Numerics: f32; learning rates and factors of a tensor in f64, rounded once; squares of change and value in f64.
//
// Limits (H100, predicted; simulated only): 30 bytes an element (16 read, 12 + 2 written), about 20 operations of which two
// are divisions and one a root: memory, 3.35 TB/s, 112e9 elements/s.
#include "tile/multi_tensor.cuh"

// As in Rust: `untaped::adamw::Params`.
struct AdamWParams {
    Updates u;
    double weight_decay;
    float one_b1, b2, one_b2, eps;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(AdamWParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(UPDATE_THREADS)
    adamw_update(const __grid_constant__ AdamWParams p) {
    const ChunkUpdate c(p.u);
    double2 sums = make_double2(0.0, 0.0);
    if (c.runs) {
        const float keep = c.tensor.decays ? static_cast<float>(1.0 - c.lr * p.weight_decay) : 1.0f;
        const float size = static_cast<float>(c.lr * p.u.scalars->inverse_bias_1), root = p.u.scalars->root_bias_2;
        sums = visit<VALUE | GRAD | FIRST | SECOND, VALUE | FIRST | SECOND, true>(c.chunk, [&](Item &e) {
            const float old = e.value, g = c.gradient(e.grad);
            e.first = fmaf(g - e.first, p.one_b1, e.first);
            e.second = fmaf(e.second, p.b2, g * g * p.one_b2);
            // With eps = 0 a gradient that was always 0 moves nothing.
            const float denominator = sqrtf(e.second) / root + p.eps;
            const float delta = denominator > 0.0f ? e.first / denominator : 0.0f;
            e.value = fmaf(-size, delta, old * keep);
            return make_float2(e.value - old, e.value);
        });
    }
    keep_sums(p.u.squares, sums);
}
