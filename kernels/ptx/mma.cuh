// mma.sync on tensor cores: c[16x8] += a[16x16] * b[16x8] by a warp, bf16 operands, f32 sums (sm_80 and later).
//
//     a   registers 0..3: (row l/4, k 2(l%4)..+1), (row +8), (k +8), (row +8, k +8)
//     b   registers 0..1: (k 2(l%4)..+1, column l/4), (k +8)
//     c   registers 0..3: (row l/4, column 2(l%4)), (column +1), (row +8), (row +8, column +1)
#pragma once
#include "ptx/memory.cuh"

namespace ptx {

static __device__ __forceinline__ void mma_m16n8k16_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

} // namespace ptx
