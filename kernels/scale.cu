// Scale of every channel and its gradients.
//
// Maths: fwd   y[r, c] = x[r, c] gamma[c]
//        bwd   gx[r, c] = gy[r, c] gamma[c],   ggamma[c] = sum over r of gy[r, c] x[r, c]
//
// Memory: x, y, gy, gx [rows, columns] of T; gamma, ggamma [columns] f32; the sums of parts of the rows [parts, columns] f32.
//
//     fwd   block -> chunks of columns x rows, thread -> one chunk of gamma and many rows: see tile/rows.cuh
//     bwd   grid.x: 8 chunks of columns     grid.y: parts of the rows     block -> 8 lanes x 32 slots of rows, which reads gy and x
//           once and writes gx on the way: see tile/column_sum.cuh
//     sum   the same over the parts
//
// Numerics: f32, y and gx rounded to T once; rows of a slot in order, then the 32 slots, then the parts; `=`. The same bits in
// every run.
//
// Limits (H100, predicted; simulated only): fwd 2, bwd 3 times sizeof(T) bytes an element: memory, 3.35 TB/s.
#include "tile/row_sum.cuh"
#include "tile/rows.cuh"

#ifndef PASS
#define PASS 0 // 0 fwd, 1 bwd, 2 sum: what the parameter is
#endif
#ifndef VEC
#define VEC 1
#endif
#ifndef GX
#define GX 1 // whether bwd writes gx
#endif

// As in Rust: `ops::scale::BwdParams`.
struct ScaleBwdParams {
    u64 gy, x, gamma, gx, out;
    int rows, columns;
};

#ifdef PARAMS_BYTES
#if PASS == 0
static_assert(sizeof(RowMapParams) == PARAMS_BYTES, "the host passes another struct");
#elif PASS == 1
static_assert(sizeof(ScaleBwdParams) == PARAMS_BYTES, "the host passes another struct");
#else
static_assert(sizeof(RowSumParams) == PARAMS_BYTES, "the host passes another struct");
#endif
#endif

#if PASS == 0
extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) scale_fwd(const __grid_constant__ RowMapParams p) {
    constexpr int EACH = elementwise::EACH<T, VEC != 0>;
    const float *const gamma = reinterpret_cast<const float *>(p.row);
    rows::map<VEC != 0>(
        reinterpret_cast<const T *>(p.in), reinterpret_cast<T *>(p.out), p.at,
        [=](auto &own, i64, int column) { elementwise::load_floats(own, gamma + column); },
        [](auto &v, const auto &own) {
#pragma unroll
            for (int i = 0; i < EACH; ++i) v[i] *= own[i];
        });
}
#elif PASS == 1
extern "C" __global__ void __launch_bounds__(column_sum::THREADS, 4) scale_bwd(const __grid_constant__ ScaleBwdParams p) {
    constexpr int EACH = elementwise::EACH<T, VEC != 0>;
    const T *const gy = reinterpret_cast<const T *>(p.gy), *const x = reinterpret_cast<const T *>(p.x);
    T *const gx = reinterpret_cast<T *>(p.gx);
    const int columns = p.columns;
    const int own = blockIdx.x * column_sum::Shape<T, VEC != 0>::COLUMNS + threadIdx.x % column_sum::LANES * EACH;
    float gamma[EACH] = {};
    if (GX && own < columns) elementwise::load_floats(gamma, reinterpret_cast<const float *>(p.gamma) + own);
    row_sum::run<VEC != 0>(reinterpret_cast<float *>(p.out), p.rows, columns, gridDim.x, 1.0f,
                           [=](float (&v)[EACH], i64 row, int column) {
                               const i64 at = row * columns + column;
                               float g[EACH], f[EACH];
                               elementwise::load(g, gy + at);
                               elementwise::load(f, x + at);
#pragma unroll
                               for (int i = 0; i < EACH; ++i) v[i] = g[i] * f[i], g[i] *= gamma[i];
                               if constexpr (GX != 0) elementwise::store(gx + at, g);
                           });
}
#else
extern "C" __global__ void __launch_bounds__(column_sum::THREADS, 4) scale_sum(const __grid_constant__ RowSumParams p) {
    row_sum::run<VEC != 0>(p);
}
#endif
