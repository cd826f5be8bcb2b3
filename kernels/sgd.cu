// Stochastic gradient descent with momentum: the rule of src/optim/sgd.rs.
//
// Maths: b = momentum b + enters (g + decay w);  w -= lr (nesterov ? g + decay w + momentum b : b)      shadow = bf16(w)
//
// Memory: tensors of any sizes by the table of tile/multi_tensor.cuh: w, g, b f32, shadow bf16.
//
//     grid.x -> chunks of 8192 elements      block -> 256 threads, thread -> 2 groups of 4 elements at a time
//
// Numerics: f32; the learning rate of a tensor in f64, rounded once; squares of change and value in f64.
//
// Limits (H100, predicted; simulated only): 22 bytes an element (12 read, 8 + 2 written), about 10 operations: memory,
// 3.35 TB/s.
#include "tile/momentum.cuh"

// As in Rust: `untaped::sgd::Params`.
struct SgdParams {
    Updates u;
    Momentum momentum;
    float weight_decay;
    int pad;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(SgdParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(UPDATE_THREADS)
    sgd_update(const __grid_constant__ SgdParams p) {
    const ChunkUpdate c(p.u);
    if (!c.runs) {
        if (threadIdx.x == 0) p.u.squares[blockIdx.x] = make_double2(0.0, 0.0);
        return;
    }
    momentum_step(p.u, c, p.momentum, c.tensor.decays ? p.weight_decay : 0.0f, 1.0f);
}
