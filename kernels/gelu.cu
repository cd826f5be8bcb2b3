// GELU in its exact form and its gradient.
//
// Maths: P(x) = (1 + erf(x / sqrt 2)) / 2     fwd   y = x P(x)     bwd   gx = gy (P(x) + x e^(-x^2 / 2) / sqrt(2 pi))
//
// Memory: all of T, [elems].
//
//     block -> 1024 chunks of 16 bytes, thread -> 4 of them: see tile/elementwise.cuh
//
// Numerics: f32, rounded to T once; `=`. In the lower tail the absolute error is that of 1 + erf, 6e-8 |x|.
//
// Limits (H100, predicted; simulated only): fwd 2, bwd 3 times sizeof(T) bytes an element; erf takes some 25 instructions: in f32
// memory, 3.35 TB/s; in bf16 the issue of instructions is as near.
#include "tile/elementwise.cuh"

#ifdef PARAMS_BYTES
static_assert(sizeof(MapParams) == PARAMS_BYTES, "the host passes another struct");
#endif

static __device__ __forceinline__ float probability(float x) { return 0.5f + 0.5f * erff(x * 0.70710678118654752f); }

extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) gelu_fwd(const __grid_constant__ MapParams p) {
    elementwise::map<1>(p, [](auto &v, i64) {
#pragma unroll
        for (int i = 0; i < Chunk<T>::SIZE; ++i) v[0][i] *= probability(v[0][i]);
    });
}

// in: gy, x
extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) gelu_bwd(const __grid_constant__ MapParams p) {
    elementwise::map<2>(p, [](auto &v, i64) {
#pragma unroll
        for (int i = 0; i < Chunk<T>::SIZE; ++i) {
            const float x = v[1][i];
            v[0][i] *= probability(x) + x * (0.39894228040143268f * __expf(-0.5f * x * x));
        }
    });
}
