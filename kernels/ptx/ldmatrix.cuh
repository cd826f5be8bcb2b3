// ldmatrix: four 8x8 matrices of 16-bit elements from shared memory into the registers of a warp (sm_75 and later).
// Lanes 8i to 8i+7 give the addresses of the eight 16-byte rows of matrix i, which arrives in register i:
//
//     without .trans: lane l holds row l/4, columns 2(l%4) and 2(l%4)+1
//     with .trans:    lane l holds column l/4, rows 2(l%4) and 2(l%4)+1
#pragma once
#include "ptx/memory.cuh"

namespace ptx {

static __device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

static __device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

} // namespace ptx
