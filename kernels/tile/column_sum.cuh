// Sums of the columns of a row-major matrix, in a fixed order.
//
//     block -> 8 lanes x one chunk of columns, one part of the rows         columns ->
//     thread (slot, lane) -> rows slot, slot + 32, .. of the part      rows |  slot 0: lane 0 | lane 1 | .. | lane 7
//     then a thread -> four columns (one): the 32 slots in order           v  slot 1: ..
#pragma once
#include "tile/types.cuh"

// in [rows, columns] -> out [gridDim.y, columns] f32
struct ColumnSumParams {
    u64 in, out;
    int rows, columns;
};

namespace column_sum {

constexpr int LANES = 8, SLOTS = 32, THREADS = LANES * SLOTS;

// Columns of a block whose threads hold `each` columns: a chunk, or one.
template <typename E, bool WIDE> struct Shape {
    static constexpr int EACH = WIDE ? Chunk<E>::SIZE : 1;
    static constexpr int COLUMNS = LANES * EACH;
};

// Hands the sums of GROUP columns from `column` on to write(column, sums), for all columns of block `block`: the sums over the
// rows begin .. end of what read(v, row, column) makes of the chunk of columns from `column` on. WIDE: `columns` is a multiple
// of a chunk.
template <typename E, bool WIDE, int GROUP, typename Read, typename Write>
static __device__ __forceinline__ void fold(int begin, int end, int columns, int block, Read read, Write write) {
    typedef Shape<E, WIDE> S;
    __shared__ __align__(16) float sums[SLOTS][S::COLUMNS];
    const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    const int first = block * S::COLUMNS, column = first + lane * S::EACH;

    float sum[S::EACH] = {};
    if (column < columns) {
#pragma unroll 4
        for (int row = begin + slot; row < end; row += SLOTS) {
            float v[S::EACH];
            read(v, row, column);
#pragma unroll
            for (int k = 0; k < S::EACH; ++k) sum[k] += v[k];
        }
    }
    // A thread's columns in groups of GROUP; the same group of all lanes lies together.
    constexpr int GROUPS = S::EACH / GROUP;
#pragma unroll
    for (int k = 0; k < S::EACH; ++k) sums[slot][(k / GROUP * LANES + lane) * GROUP + k % GROUP] = sum[k];
    __syncthreads();

    const int from = threadIdx.x * GROUP, j = (threadIdx.x % LANES * GROUPS + threadIdx.x / LANES) * GROUP;
    if (from >= S::COLUMNS || first + j >= columns) return;
    float total[GROUP] = {};
#pragma unroll 8
    for (int s = 0; s < SLOTS; ++s)
#pragma unroll
        for (int k = 0; k < GROUP; ++k) total[k] += sums[s][from + k];
    write(first + j, total);
}

// out[part][j] = sum over the rows of part blockIdx.y of in[row][j], for the columns j of block blockIdx.x. The rows are
// cut into gridDim.y parts of equal length but for the last. WIDE: `columns` is a multiple of a chunk.
template <typename E, bool WIDE>
static __device__ __forceinline__ void run(const E *in, int rows, int columns, float *out) {
    constexpr int GROUP = WIDE ? 4 : 1;
    const int length = (rows + gridDim.y - 1) / gridDim.y;
    const int begin = blockIdx.y * length, end = min(begin + length, rows);
    auto read = [=](float (&v)[Shape<E, WIDE>::EACH], int row, int column) {
        const E *const p = in + static_cast<size_t>(row) * columns + column;
        if constexpr (WIDE)
            load_chunk(v, p);
        else
            v[0] = to_float(*p);
    };
    fold<E, WIDE, GROUP>(begin, end, columns, blockIdx.x, read, [=](int column, const float (&total)[GROUP]) {
        float *const to = out + static_cast<size_t>(blockIdx.y) * columns + column;
        if constexpr (WIDE)
            store_chunk(to, total);
        else
            *to = total[0];
    });
}

} // namespace column_sum
