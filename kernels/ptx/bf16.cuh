// bf16 conversions. Two values travel in a register, the one of lower index in the lower half.
#pragma once
#include "ptx/memory.cuh"

namespace ptx {

// Rounds to nearest even.
static __device__ __forceinline__ u32 pack_bf16x2(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

static __device__ __forceinline__ float bf16_low(u32 pair) { return __uint_as_float(pair << 16); }
static __device__ __forceinline__ float bf16_high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

} // namespace ptx
