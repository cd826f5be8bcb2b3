// Sum of two tensors, the second possibly spread over the rows of the first, with an optional ReLU; and its gradients.
//
// Maths:
//
//     fwd   y[i] = a[i] + b[i]                                        rows  y[s, r, c] = a[s, r, c] + b[s, c]
//           y = max(y, 0), NaN stays NaN                              RELU
//     gate  ga[i] = y[i] <= 0 ? 0 : gy[i]                             the ReLU's gradient, from its result
//     sum   gb[s, c] = sum over r of ga[s, r, c]
//
// Memory: a, y, gy, ga [segments, rows, columns], b, gb [segments, columns], all of T and contiguous.
//
//     fwd, gate   block -> 1024 chunks of 16 bytes, thread -> 4 of them: see tile/elementwise.cuh
//     rows        block -> chunks of columns x rows of a segment, thread -> one chunk of b and many rows: see tile/rows.cuh
//     sum         block -> 8 chunks of columns x 32 slots of rows: see tile/row_sum.cuh
//
// Numerics: sums in f32, rounded to T once; `=`. The order of additions of `sum` is fixed: the same bits in every run.
//
// Limits (H100, predicted; simulated only): fwd 3, gate 3, rows 2, sum 1 times sizeof(T) bytes an element, one or two
// operations: memory, 3.35 TB/s.
#include "tile/row_sum.cuh"
#include "tile/rows.cuh"

#ifndef PASS
#define PASS 0 // 0 fwd and gate, 1 rows, 2 sum: what the parameter is
#endif
#ifndef RELU
#define RELU 0
#endif
#ifndef VEC
#define VEC 1
#endif

#ifdef PARAMS_BYTES
#if PASS == 0
static_assert(sizeof(MapParams) == PARAMS_BYTES, "the host passes another struct");
#elif PASS == 1
static_assert(sizeof(RowMapParams) == PARAMS_BYTES, "the host passes another struct");
#else
static_assert(sizeof(RowSumParams) == PARAMS_BYTES, "the host passes another struct");
#endif
#endif

template <int N> static __device__ __forceinline__ void add(float (&v)[N], const float (&w)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        v[i] += w[i];
        if (RELU) v[i] = v[i] < 0.0f ? 0.0f : v[i];
    }
}

#if PASS == 0
extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) add_fwd(const __grid_constant__ MapParams p) {
    elementwise::map<2>(p, [](auto &v, i64) { add(v[0], v[1]); });
}

extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) add_gate(const __grid_constant__ MapParams p) {
    elementwise::map<2>(p, [](auto &v, i64) {
#pragma unroll
        for (int i = 0; i < Chunk<T>::SIZE; ++i)
            if (v[1][i] <= 0.0f) v[0][i] = 0.0f;
    });
}
#elif PASS == 1
extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) add_rows(const __grid_constant__ RowMapParams p) {
    const T *const b = reinterpret_cast<const T *>(p.row);
    const int columns = p.at.columns;
    rows::map<VEC != 0>(
        reinterpret_cast<const T *>(p.in), reinterpret_cast<T *>(p.out), p.at,
        [=](auto &own, i64 segment, int column) { elementwise::load(own, b + segment * columns + column); },
        [](auto &v, const auto &own) { add(v, own); });
}
#else
extern "C" __global__ void __launch_bounds__(column_sum::THREADS, 4) add_sum(const __grid_constant__ RowSumParams p) {
    row_sum::run<VEC != 0>(p);
}
#endif
