// Sums over the rows of each segment, in a fixed order: in [segments, rows, columns] -> out [segments, parts, columns].
//
//     grid.x: segments * blocks across the columns     grid.y: parts of the rows     block: see tile/column_sum.cuh
//
// Where one part does not fill the device, the parts are summed by a second launch.
#pragma once
#include "tile/column_sum.cuh"
#include "tile/elementwise.cuh"

// The element type of what is written: that of a result, or f32 for parts.
#ifndef OUT_BF16
#define OUT_BF16 0
#endif

// As in Rust: `ops::elementwise::rows::RowSumParams`.
struct RowSumParams {
    u64 in, out;
    int rows, columns;
    int across;  // blocks of a row
    float scale; // of the sums
};

namespace row_sum {

typedef typename Element<OUT_BF16 != 0>::Type Out;

// Columns that a thread writes: 16 bytes where it has them.
template <bool WIDE> constexpr int GROUP = WIDE ? (Chunk<T>::SIZE < Chunk<Out>::SIZE ? Chunk<T>::SIZE : Chunk<Out>::SIZE) : 1;

// Writes the sums, times `scale`, of what read(v, row, column) makes of the rows of a part; `row` counts from the first
// segment's first.
template <bool WIDE, typename Read>
static __device__ __forceinline__ void run(Out *out, int rows, int columns, int across, float scale, Read read) {
    const int segment = blockIdx.x / across, length = (rows + gridDim.y - 1) / gridDim.y;
    const int begin = blockIdx.y * length, end = min(begin + length, rows);
    const i64 start = static_cast<i64>(segment) * rows;
    constexpr int EACH = elementwise::EACH<T, WIDE>;
    auto from = [=](float (&v)[EACH], int row, int column) { read(v, start + row, column); };
    auto write = [=](int column, float (&total)[GROUP<WIDE>]) {
#pragma unroll
        for (int k = 0; k < GROUP<WIDE>; ++k) total[k] *= scale;
        Out *const to = out + (static_cast<i64>(segment) * gridDim.y + blockIdx.y) * columns + column;
        if constexpr (GROUP<WIDE> == 1 || GROUP<WIDE> == Chunk<Out>::SIZE)
            elementwise::store(to, total);
        else // four of bf16
            *reinterpret_cast<uint2 *>(to) =
                make_uint2(ptx::pack_bf16x2(total[0], total[1]), ptx::pack_bf16x2(total[2], total[3]));
    };
    column_sum::fold<T, WIDE, GROUP<WIDE>>(begin, end, columns, blockIdx.x % across, from, write);
}

// The sums of the rows themselves.
template <bool WIDE> static __device__ __forceinline__ void run(const RowSumParams &p) {
    const T *const in = reinterpret_cast<const T *>(p.in);
    const int columns = p.columns;
    run<WIDE>(reinterpret_cast<Out *>(p.out), p.rows, columns, p.across, p.scale,
              [=](float (&v)[elementwise::EACH<T, WIDE>], i64 row, int column) {
                  elementwise::load(v, in + row * columns + column);
              });
}

} // namespace row_sum
