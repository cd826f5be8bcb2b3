// Gradient of a bias: the sums of the columns of dy.
//
// Maths: out[part][j] = sum over the rows of the part of in[row][j]. Launched over parts of the rows, then over the parts.
//
// Memory: in [rows, columns] of T, row-major; out [gridDim.y, columns] f32. VEC: columns are a multiple of a chunk of 16 bytes.
//
//     grid.x: 8 chunks of columns (8 columns without VEC)     grid.y: parts of the rows
//     block -> 32 slots x 8 lanes, lane -> a chunk, slot -> every 32nd row: see tile/column_sum.cuh
//
// Numerics: f32 sums; rows of a slot in order, then the 32 slots, then the parts; `=`. The same bits in every run.
//
// Limits (H100, predicted; simulated only): sizeof(T) bytes an element, one addition: memory, 3.35 TB/s.
#include "tile/column_sum.cuh"

#ifndef VEC
#define VEC 1
#endif

#ifdef PARAMS_BYTES
static_assert(sizeof(ColumnSumParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(column_sum::THREADS)
    conv2d_bias_grad_sum(const __grid_constant__ ColumnSumParams p) {
    column_sum::run<T, VEC != 0>(reinterpret_cast<const T *>(p.in), p.rows, p.columns, reinterpret_cast<float *>(p.out));
}
