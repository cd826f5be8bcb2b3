// SiLU and its gradient.
//
// Maths: s = 1 / (1 + e^-x)     fwd   y = x s     bwd   gx = gy s (1 + x (1 - s))
//
// Memory: all of T, [elems].
//
//     block -> 1024 chunks of 16 bytes, thread -> 4 of them: see tile/elementwise.cuh
//
// Numerics: f32 with the exponential of the special function unit (2 ulp and 1.2e-6 |x| relative), rounded to T once; `=`.
//
// Limits (H100, predicted; simulated only): fwd 2, bwd 3 times sizeof(T) bytes an element: memory, 3.35 TB/s. In bf16 the special
// function units (two operations an element) are at half of their rate then.
#include "tile/elementwise.cuh"

#ifdef PARAMS_BYTES
static_assert(sizeof(MapParams) == PARAMS_BYTES, "the host passes another struct");
#endif

static __device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) silu_fwd(const __grid_constant__ MapParams p) {
    elementwise::map<1>(p, [](auto &v, i64) {
#pragma unroll
        for (int i = 0; i < Chunk<T>::SIZE; ++i) v[0][i] *= sigmoid(v[0][i]);
    });
}

// in: gy, x
extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) silu_bwd(const __grid_constant__ MapParams p) {
    elementwise::map<2>(p, [](auto &v, i64) {
#pragma unroll
        for (int i = 0; i < Chunk<T>::SIZE; ++i) {
            const float x = v[1][i], s = sigmoid(x);
            v[0][i] *= s * (1.0f + x * (1.0f - s));
        }
    });
}
