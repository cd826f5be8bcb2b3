// Rectified linear unit and its gradient.
//
// Maths: fwd   y[i] = x[i] < 0 ? 0 : x[i]            NaN stays NaN
//        bwd   gx[i] = y[i] <= 0 ? 0 : gy[i]
//
// Memory: all of T, [elems].
//
//     block -> 1024 chunks of 16 bytes, thread -> 4 of them: see tile/elementwise.cuh
//
// Numerics: exact; `=`.
//
// Limits (H100, predicted; simulated only): fwd 2, bwd 3 times sizeof(T) bytes an element: memory, 3.35 TB/s.
#include "tile/elementwise.cuh"

#ifdef PARAMS_BYTES
static_assert(sizeof(MapParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) relu_fwd(const __grid_constant__ MapParams p) {
    elementwise::map<1>(p, [](auto &v, i64) {
#pragma unroll
        for (int i = 0; i < Chunk<T>::SIZE; ++i)
            if (v[0][i] < 0.0f) v[0][i] = 0.0f;
    });
}

// in: gy, y
extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) relu_bwd(const __grid_constant__ MapParams p) {
    elementwise::map<2>(p, [](auto &v, i64) {
#pragma unroll
        for (int i = 0; i < Chunk<T>::SIZE; ++i)
            if (v[1][i] <= 0.0f) v[0][i] = 0.0f;
    });
}
