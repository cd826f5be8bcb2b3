// Class labels, and the sum of losses.
#pragma once
#include "tile/ordered_sum.cuh"

// What becomes of a row with this label.
enum LabelKind { LABEL_CLASS, LABEL_IGNORED, LABEL_WRONG };

// A label is a class, or the ignored one if there is such; any other makes loss and gradient NaN, since a kernel cannot
// refuse it.
static __device__ __forceinline__ LabelKind kind_of(i64 label, int classes, int has_ignore, i64 ignore) {
    if (has_ignore && label == ignore) return LABEL_IGNORED;
    return label >= 0 && label < classes ? LABEL_CLASS : LABEL_WRONG;
}

static __device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

// One block of THREADS threads: sums of losses and of counts, in order.
template <int THREADS> static __device__ __forceinline__ double2 sum_losses(const float2 *parts, int count) {
    __shared__ double board[2][THREADS];
    double v[2] = {0.0, 0.0};
    for (int i = threadIdx.x; i < count; i += THREADS) v[0] += parts[i].x, v[1] += parts[i].y;
    sum_block(v, board);
    return make_double2(v[0], v[1]);
}
