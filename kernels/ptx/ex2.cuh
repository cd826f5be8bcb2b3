// ex2.approx: 2^x by the special function unit, relative error about 2^-22; results below the normal numbers become 0, and
// 2^-inf is 0. NaN stays NaN.
#pragma once

namespace ptx {

static __device__ __forceinline__ float ex2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

} // namespace ptx
