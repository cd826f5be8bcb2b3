// Attention, gradients of keys and values.
//
// Maths, for every sample and head (see attention.cu for S, P and Y, attention_dq.cu for D):
//
//     gV = P' gY        gS = P (gY V' - D)        gK = scale gS' Q
//
// with P' = exp(S' - lse), S' = scale K Q', computed again, tile by tile: a block owns keys and passes over all queries, so
// that no two blocks add to the same gradient.
//
// Memory: qkv and its gradient [n, t, 3 heads d], gy [n, t, heads d] of T; lse and delta (D) [n, heads, padded] f32,
// infinite and 0 for queries that do not exist.
//
//     grid.x: samples x heads x tiles of ROWS keys, tiles fastest
//     block: WARPS warps, each with 16 MI rows of S', gP', gK and gV        see tile/attention_mainloop.cuh
//
//        K, V [ROWS, HEAD] --once--> shared, registers (bf16)
//        Q, gY [COLUMNS, HEAD], lse, D --cp.async--> two stages
//            |load k+1 ..................................|
//            |S' = K Q'|gP' = V gY'|gV += P' gY|gK += gS' Q|wait, barrier|
//
// Numerics: S, gP, gK and gV in f32, P and gS rounded to bf16 for their products where T is bf16; scale multiplies the finished
// sum; queries are added in order; `=`.
//
// Limits (H100, predicted; simulated only): 8 t t d FLOPs a head on tensor cores. Bytes: 6 t d sizeof(T) a head, once from
// memory.
#include "ptx/ex2.cuh"
#include "tile/attention_mainloop.cuh"

#ifdef PARAMS_BYTES
static_assert(sizeof(AttentionParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(attention::THREADS, 2)
    attention_dkv(const __grid_constant__ AttentionParams p) {
    using namespace attention;
    extern __shared__ __align__(128) u8 shared[];
    u8 *const keys = shared, *const values = keys + RowTile::BYTES, *const ring = values + RowTile::BYTES;
    constexpr int STAGE_BYTES = 2 * ColumnTile::BYTES + 2 * COLUMNS * static_cast<int>(sizeof(float));
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Place place(p);
    const T *const q = p.qkv + place.qkv, *const k = q + p.which_step, *const v = k + p.which_step;
    const int tiles = (p.tokens + COLUMNS - 1) / COLUMNS;
    const auto load = [&](int tile) {
        u8 *const stage = ring + (tile & 1) * STAGE_BYTES;
        float *const vectors = reinterpret_cast<float *>(stage + 2 * ColumnTile::BYTES);
        copy_rows<COLUMNS>(stage, q, place.qkv_pitch, tile * COLUMNS, p.tokens, p.dim);
        copy_rows<COLUMNS>(stage + ColumnTile::BYTES, p.gy + place.y, place.y_pitch, tile * COLUMNS, p.tokens, p.dim);
        copy_vector<COLUMNS>(vectors, p.lse + place.vectors + tile * COLUMNS);
        copy_vector<COLUMNS>(vectors + COLUMNS, p.delta + place.vectors + tile * COLUMNS);
        ptx::cp_async_commit();
    };
    copy_rows<ROWS>(keys, k, place.qkv_pitch, place.first, p.tokens, p.dim);
    copy_rows<ROWS>(values, v, place.qkv_pitch, place.first, p.tokens, p.dim);
    load(0);
    ptx::cp_async_wait<0>();
    __syncthreads();
    const LeftRows<HEAD <= 64> left(keys, warp, lane), left_values(values, warp, lane);

    const float factor = p.scale * LOG2_E;
    Output gk, gv;
    clear(gk), clear(gv);

#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) load(tile + 1);
        const u8 *const stage = ring + (tile & 1) * STAGE_BYTES;
        const float *const lse = reinterpret_cast<const float *>(stage + 2 * ColumnTile::BYTES), *const delta = lse + COLUMNS;
        Scores s, g;
        scores(s, left, stage, lane);
        scores(g, left_values, stage + ColumnTile::BYTES, lane);
#pragma unroll
        for (int j = 0; j < NJ; j++) {
            const float2 base = *reinterpret_cast<const float2 *>(lse + 8 * j + 2 * (lane & 3));
            const float2 sum = *reinterpret_cast<const float2 *>(delta + 8 * j + 2 * (lane & 3));
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    s[i][j][e] = ptx::ex2(fmaf(s[i][j][e], factor, -(e % 2 ? base.y : base.x) * LOG2_E));
                    g[i][j][e] = s[i][j][e] * (g[i][j][e] - (e % 2 ? sum.y : sum.x));
                }
        }
        accumulate(gv, s, stage + ColumnTile::BYTES, lane);
        accumulate(gk, g, stage, lane);
        if (tile + 1 < tiles) {
            ptx::cp_async_wait<0>();
            __syncthreads();
        }
    }

    float one[2 * MI], scale[2 * MI];
#pragma unroll
    for (int i = 0; i < 2 * MI; i++) one[i] = 1.0f, scale[i] = p.scale;
    T *const gradient = p.gqkv + place.qkv + p.which_step;
    store_rows(gk, scale, keys, gradient, place.qkv_pitch, place.first, p.tokens, p.dim, warp, lane);
    store_rows(gv, one, values, gradient + p.which_step, place.qkv_pitch, place.first, p.tokens, p.dim, warp, lane);
}
