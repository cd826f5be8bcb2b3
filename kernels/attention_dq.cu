// Attention, gradient of the queries.
//
// Maths, for every sample and head (see attention.cu for S, P and Y):
//
//     D = rowsum(gY Y) = rowsum(P gP)        gP = gY V'        gS = P (gP - D)        gQ = scale gS K
//
// with P = exp(S - lse) computed again, tile by tile. D is written for the pass over queries, attention_dkv.
//
// Memory: qkv and its gradient [n, t, 3 heads d], y and gy [n, t, heads d] of T; lse and delta (D) [n, heads, padded] f32.
//
//     grid.x: samples x heads x tiles of ROWS queries, tiles fastest
//     block: WARPS warps, each with 16 MI rows of S, gP and gQ        see tile/attention_mainloop.cuh
//
//        Q, gY [ROWS, HEAD] --once--> shared, registers (bf16)        D of a row: the lanes that have its chunks, by shuffles
//        K, V [COLUMNS, HEAD] --cp.async--> two stages     |load k+1 ......................|
//                                                          |S = Q K'|gP = gY V'|gS|gQ += gS K|wait, barrier|
//
// Numerics: S, gP, D and gQ in f32, gS rounded to bf16 for its product where T is bf16; scale multiplies the finished sum;
// `=`. D is of Y as it was stored.
//
// Limits (H100, predicted; simulated only): 6 t t d FLOPs a head on tensor cores. Bytes: 6 t d sizeof(T) a head, once from
// memory.
#include "ptx/ex2.cuh"
#include "tile/attention_mainloop.cuh"

#ifdef PARAMS_BYTES
static_assert(sizeof(AttentionParams) == PARAMS_BYTES, "the host passes another struct");
#endif

// rowsum(gy y) of the block's rows to `sums`; `gradient` is the tile of gy.
static __device__ __forceinline__ void row_sums(float *sums, const u8 *gradient, const T *y, int pitch, int first, int tokens,
                                                int dim) {
    using namespace attention;
    constexpr int E = Chunk<T>::SIZE, LANES = HEAD / E;
    static_assert(LANES <= 32 && ROWS * LANES % THREADS == 0, "lanes of a row in a warp, and whole turns");
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * LANES; i += THREADS) {
        const int row = i / LANES, chunk = i % LANES;
        float a[E], b[E];
        unpack(a, *reinterpret_cast<const uint4 *>(gradient + RowTile::at(row, chunk)), T());
        const T *const from = y + static_cast<i64>(first + row) * pitch + chunk * E;
#pragma unroll
        for (int e = 0; e < E; e++) b[e] = 0.0f;
        if (first + row < tokens) {
            if constexpr (VEC) {
                if (chunk * E < dim) load_chunk(b, from);
            } else {
#pragma unroll
                for (int e = 0; e < E; e++)
                    if (chunk * E + e < dim) b[e] = to_float(from[e]);
            }
        }
        float sum = 0.0f;
#pragma unroll
        for (int e = 0; e < E; e++) sum = fmaf(a[e], b[e], sum);
#pragma unroll
        for (int step = 1; step < LANES; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (chunk == 0) sums[row] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(attention::THREADS, 2)
    attention_dq(const __grid_constant__ AttentionParams p) {
    using namespace attention;
    extern __shared__ __align__(128) u8 shared[];
    u8 *const queries = shared, *const gradient = queries + RowTile::BYTES, *const ring = gradient + RowTile::BYTES;
    constexpr int STAGE_BYTES = 2 * ColumnTile::BYTES;
    float *const lse = reinterpret_cast<float *>(ring + 2 * STAGE_BYTES), *const delta = lse + ROWS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Place place(p);
    const T *const q = p.qkv + place.qkv, *const k = q + p.which_step, *const v = k + p.which_step;
    const int tiles = (p.tokens + COLUMNS - 1) / COLUMNS;
    const auto load = [&](int tile) {
        u8 *const stage = ring + (tile & 1) * STAGE_BYTES;
        copy_rows<COLUMNS>(stage, k, place.qkv_pitch, tile * COLUMNS, p.tokens, p.dim);
        copy_rows<COLUMNS>(stage + ColumnTile::BYTES, v, place.qkv_pitch, tile * COLUMNS, p.tokens, p.dim);
        ptx::cp_async_commit();
    };
    copy_rows<ROWS>(queries, q, place.qkv_pitch, place.first, p.tokens, p.dim);
    copy_rows<ROWS>(gradient, p.gy + place.y, place.y_pitch, place.first, p.tokens, p.dim);
    copy_vector<ROWS>(lse, p.lse + place.vectors + place.first);
    load(0);
    ptx::cp_async_wait<0>();
    __syncthreads();
    row_sums(delta, gradient, p.y + place.y, place.y_pitch, place.first, p.tokens, p.dim);
    const LeftRows<HEAD <= 64> left(queries, warp, lane), left_gradient(gradient, warp, lane);
    __syncthreads();
    if (threadIdx.x < ROWS / 4)
        ptx::store_global_16(p.delta + place.vectors + place.first + threadIdx.x * 4,
                             *reinterpret_cast<const uint4 *>(delta + threadIdx.x * 4));

    const float factor = p.scale * LOG2_E;
    Output gq;
    clear(gq);
    // Of rows l/4 + 8 i.
    float base[2 * MI], sums[2 * MI];
#pragma unroll
    for (int i = 0; i < 2 * MI; i++) {
        const int row = warp * MI * 16 + i * 8 + (lane >> 2);
        base[i] = lse[row] * LOG2_E, sums[i] = delta[row];
    }

#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) load(tile + 1);
        const u8 *const stage = ring + (tile & 1) * STAGE_BYTES;
        Scores s, g;
        scores(s, left, stage, lane);
        scores(g, left_gradient, stage + ColumnTile::BYTES, lane);
        const int there = p.tokens - tile * COLUMNS;
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int j = 0; j < NJ; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float weight = ptx::ex2(fmaf(s[i][j][e], factor, -base[2 * i + e / 2]));
                    const bool exists = 8 * j + 2 * (lane & 3) + e % 2 < there;
                    s[i][j][e] = exists ? weight * (g[i][j][e] - sums[2 * i + e / 2]) : 0.0f;
                }
        accumulate(gq, s, stage, lane);
        if (tile + 1 < tiles) {
            ptx::cp_async_wait<0>();
            __syncthreads();
        }
    }

    float scale[2 * MI];
#pragma unroll
    for (int i = 0; i < 2 * MI; i++) scale[i] = p.scale;
    store_rows(gq, scale, queries, p.gqkv + place.qkv, place.qkv_pitch, place.first, p.tokens, p.dim, warp, lane);
}
