// The step with momentum that SGD and LARS share.
#pragma once
#include "tile/multi_tensor.cuh"

// As in Rust: `untaped::multi_tensor::Momentum`.
struct Momentum {
    float momentum;
    int nesterov;
};

// g = scale (gradient + decay w); b = momentum b + enters g; w -= lr (nesterov ? g + momentum b : b)
static __device__ __forceinline__ void momentum_step(const Updates &u, const ChunkUpdate &c, const Momentum &m, float decay,
                                                     float scale) {
    const float lr = static_cast<float>(c.lr), enters = u.scalars->enters;
    const double2 sums = visit<VALUE | GRAD | FIRST, VALUE | FIRST, true>(c.chunk, [&](Item &e) {
        const float old = e.value, g = fmaf(decay, old, c.gradient(e.grad)) * scale;
        e.first = fmaf(m.momentum, e.first, enters * g);
        const float direction = m.nesterov ? fmaf(m.momentum, e.first, g) : e.first;
        e.value = fmaf(-lr, direction, old);
        return make_float2(e.value - old, e.value);
    });
    keep_sums(u.squares, sums);
}
