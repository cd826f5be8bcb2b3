// Rows of a table, and the sums of their gradients.
//
// Maths:   fwd   y[i] = weight[index[i]]        bwd   gw[k] = sum over the i with index[i] = k, in order, of gy[i]
//
// Memory: weight and gw [rows, dim] f32; index [count] i64; y and gy [count, dim] f32. VEC: dim is a multiple of 4.
//
//     fwd   a thread: four columns (one without VEC) of a row of y
//     bwd   grid.x: 8 rows of the table, warp -> a row         grid.y: 32 lanes of four columns (one)
//
//           index |..k....k|k.......|    32 lanes compare 32 indices; of the ones that are equal all lanes add the row of gy,
//                  ^    ^   ^            the first one first
//
// Numerics: copies; f32 sums in the order of i, `=`: the same bits in every run. A number outside the table makes a row of NaN,
// and its gradient goes nowhere.
//
// Limits (H100, predicted; simulated only): fwd 8 bytes an element; bwd 4 bytes an element of gy and of gw, and 8 bytes of the
// second-level cache for every index and row of the table: memory.
#include "tile/piece.cuh"

// As in Rust: `embedding::Params`.
struct EmbeddingParams {
    const float *from; // weight, gy in the backward pass
    const i64 *index;
    float *to;         // y, gw in the backward pass
    int rows, dim, count, reserved;
};
#ifdef PARAMS_BYTES
static_assert(sizeof(EmbeddingParams) == PARAMS_BYTES, "the host passes another struct");
#endif

constexpr int THREADS = 256, WARPS = THREADS / 32, E = VEC ? 4 : 1;

extern "C" __global__ void __launch_bounds__(THREADS) embedding_fwd(const __grid_constant__ EmbeddingParams p) {
    const int across = p.dim / E;
    const i64 at = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x, i = at / across;
    if (i >= p.count) return;
    const int column = static_cast<int>(at - i * across) * E;
    const i64 k = p.index[i];
    float v[E];
#pragma unroll
    for (int e = 0; e < E; e++) v[e] = __uint_as_float(0x7fc00000u);
    if (k >= 0 && k < p.rows) load_piece(v, p.from + k * p.dim + column);
    store_piece(p.to + i * p.dim + column, v);
}

extern "C" __global__ void __launch_bounds__(THREADS) embedding_bwd(const __grid_constant__ EmbeddingParams p) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    const int column = (blockIdx.y * 32 + lane) * E;
    if (row >= p.rows) return;
    const bool exists = column < p.dim;
    float sum[E] = {};
    for (int first = 0; first < p.count; first += 32) {
        const bool equal = first + lane < p.count && p.index[first + lane] == row;
        for (u32 hits = __ballot_sync(~0u, equal); hits; hits &= hits - 1) {
            if (!exists) continue;
            const i64 i = first + __ffs(hits) - 1;
            float v[E];
            load_piece(v, p.from + i * p.dim + column);
#pragma unroll
            for (int e = 0; e < E; e++) sum[e] += v[e];
        }
    }
    if (exists) store_piece(p.to + static_cast<i64>(row) * p.dim + column, sum);
}
