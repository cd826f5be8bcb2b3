// Mean over all pixels of each image and channel, and its gradient.
//
// Maths: fwd   y[n, c] = 1/(h w) sum over the pixels r of x[n, r, c]
//        bwd   gx[n, r, c] = gy[n, c] / (h w)
//
// Memory: x, gx [n, h w, c], y, gy [n, c] of T; the sums of parts of the pixels [n, parts, c] f32.
//
//     fwd   grid.x: images * blocks across the channels     grid.y: parts of the pixels     block -> 8 chunks of channels x 32 slots of
//           pixels: see tile/row_sum.cuh; launched over the parts again where there are several
//     bwd   block -> chunks of channels x pixels of an image, thread -> one chunk of gy and many pixels: see tile/rows.cuh
//
// Numerics: f32 sums, pixels of a slot in order, then the 32 slots, then the parts, rounded to T once; `=`. The same bits in every
// run.
//
// Limits (H100, predicted; simulated only): sizeof(T) bytes an element, an addition: memory, 3.35 TB/s.
#include "tile/row_sum.cuh"
#include "tile/rows.cuh"

#ifndef PASS
#define PASS 0 // 0 fwd, 1 bwd: what the parameter is
#endif
#ifndef VEC
#define VEC 1
#endif

// As in Rust: `ops::global_avg_pool::BwdParams`.
struct GlobalAvgPoolBwdParams {
    u64 gy, gx;
    RowLayout at;
    float scale;
    int pad;
};

#ifdef PARAMS_BYTES
#if PASS == 0
static_assert(sizeof(RowSumParams) == PARAMS_BYTES, "the host passes another struct");
#else
static_assert(sizeof(GlobalAvgPoolBwdParams) == PARAMS_BYTES, "the host passes another struct");
#endif
#endif

#if PASS == 0
extern "C" __global__ void __launch_bounds__(column_sum::THREADS, 4)
    global_avg_pool_fwd(const __grid_constant__ RowSumParams p) {
    row_sum::run<VEC != 0>(p);
}
#else
extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4)
    global_avg_pool_bwd(const __grid_constant__ GlobalAvgPoolBwdParams p) {
    constexpr int EACH = elementwise::EACH<T, VEC != 0>;
    const rows::Share share(p.at, EACH);
    if (!share.exists) return;
    float v[EACH];
    elementwise::load(v, reinterpret_cast<const T *>(p.gy) + share.segment * p.at.columns + share.column);
#pragma unroll
    for (int i = 0; i < EACH; ++i) v[i] *= p.scale;
    T *const gx = reinterpret_cast<T *>(p.gx) + share.segment * p.at.rows * p.at.columns + share.column;
    for (i64 row = share.begin; row < share.end; row += p.at.slots) elementwise::store(gx + row * p.at.columns, v);
}
#endif
