// Attention, forward.
//
// Maths, for every sample and head with t tokens and d channels:
//
//     S = scale Q K'        P = softmax(S) over the keys        Y = P V        lse = log(sum over the keys of exp S)
//
// computed in one pass over the keys (Milakov and Gimelshein 2018; Dao et al. 2022): a row keeps the largest score so far,
// the sum of exponentials relative to it, and a row of Y; a larger score rescales both.
//
// Memory: qkv [n, t, 3 heads d] of T, in either order of heads, read in place; y [n, t, heads d] of T; lse
// [n, heads, padded] f32.
//
//     grid.x: samples x heads x tiles of ROWS queries, tiles fastest: blocks that run together share keys and values
//     block: WARPS warps, each with 16 MI rows of S and of Y        see tile/attention_mainloop.cuh
//
//        Q [ROWS, HEAD] --once--> shared, registers (bf16)
//        K, V [COLUMNS, HEAD] --cp.async--> two stages     |load k+1 ................|
//                                                          |S = Q K'|softmax|Y += P V|wait, barrier|
//
// Numerics: S, exponentials, their sums and Y in f32; exponentials are those of base 2, with scale log2(e) folded into one fma.
// P is rounded to bf16 for the second product where T is bf16, its sum is not. A lane adds the exponentials of its own
// columns, a tile at a time, the four lanes of a row at the end; `=`. NaN and infinity show in their rows.
//
// Limits (H100, predicted; simulated only): 4 t t d FLOPs a head on tensor cores, 4096 a cycle of a multiprocessor at best; t t
// exponentials, 16 a cycle, take as long at d = 64. Bytes: 4 t d sizeof(T) a head, once from memory.
#include "ptx/ex2.cuh"
#include "tile/attention_mainloop.cuh"

#ifdef PARAMS_BYTES
static_assert(sizeof(AttentionParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(attention::THREADS, 2)
    attention_fwd(const __grid_constant__ AttentionParams p) {
    using namespace attention;
    extern __shared__ __align__(128) u8 shared[];
    u8 *const queries = shared, *const ring = shared + RowTile::BYTES;
    constexpr int STAGE_BYTES = 2 * ColumnTile::BYTES;
    float *const lse = reinterpret_cast<float *>(ring + 2 * STAGE_BYTES);
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
    load(0);
    ptx::cp_async_wait<0>();
    __syncthreads();
    const LeftRows<HEAD <= 64> left(queries, warp, lane);

    const float factor = p.scale * LOG2_E;
    Output y;
    clear(y);
    // Of rows l/4 + 8 i: the largest score, in units of log2(e) / scale, and this lane's sum of exponentials.
    float largest[2 * MI], sum[2 * MI];
#pragma unroll
    for (int i = 0; i < 2 * MI; i++) largest[i] = -infinity(), sum[i] = 0.0f;

#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) load(tile + 1);
        const u8 *const stage = ring + (tile & 1) * STAGE_BYTES;
        Scores s;
        scores(s, left, stage, lane);
        const int there = p.tokens - tile * COLUMNS;
        if (there < COLUMNS) {
#pragma unroll
            for (int j = 0; j < NJ; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (8 * j + 2 * (lane & 3) + e % 2 >= there)
#pragma unroll
                        for (int i = 0; i < MI; i++) s[i][j][e] = -infinity();
        }
#pragma unroll
        for (int i = 0; i < 2 * MI; i++) {
            const int h = i % 2 * 2;
            float top = largest[i];
#pragma unroll
            for (int j = 0; j < NJ; j++) top = fmaxf(top, fmaxf(s[i / 2][j][h], s[i / 2][j][h + 1]));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            // A row of scores that are all -inf so far: exponentials of 0, not NaN.
            const float base = top == -infinity() ? 0.0f : top * factor;
            const float shrink = ptx::ex2(fmaf(largest[i], factor, -base));
            float part = 0.0f;
#pragma unroll
            for (int j = 0; j < NJ; j++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float &e = s[i / 2][j][h + c];
                    e = ptx::ex2(fmaf(e, factor, -base));
                    part += e;
                }
            sum[i] = fmaf(sum[i], shrink, part);
            largest[i] = top;
#pragma unroll
            for (int j = 0; j < NH; j++) y[i / 2][j][h] *= shrink, y[i / 2][j][h + 1] *= shrink;
        }
        accumulate(y, s, stage + ColumnTile::BYTES, lane);
        if (tile + 1 < tiles) {
            ptx::cp_async_wait<0>();
            __syncthreads();
        }
    }

    float inverse[2 * MI];
#pragma unroll
    for (int i = 0; i < 2 * MI; i++) {
        float all = sum[i] + __shfl_xor_sync(~0u, sum[i], 1);
        all += __shfl_xor_sync(~0u, all, 2);
        inverse[i] = 1.0f / all;
        const int row = warp * MI * 16 + i * 8 + (lane >> 2);
        // Rows that do not exist have no exponentials in the backward pass.
        if ((lane & 3) == 0) lse[row] = place.first + row < p.tokens ? fmaf(largest[i], p.scale, logf(all)) : infinity();
    }
    store_rows(y, inverse, queries, p.y + place.y, place.y_pitch, place.first, p.tokens, p.dim, warp, lane);
    const int row = warp * MI * 16 + lane * 4;
    if (lane < MI * 4 && place.first + row < p.padded)
        ptx::store_global_16(p.lse + place.vectors + place.first + row, *reinterpret_cast<const uint4 *>(lse + row));
}
