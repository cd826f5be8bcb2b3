// Division of a number below 2^31 by one that is known at launch: a multiplication and a shift (Granlund and
// Montgomery, "Division by Invariant Integers using Multiplication", 1994). Made by `FastDiv::new` in Rust.
#pragma once
#include "ptx/memory.cuh"

struct FastDiv {
    u32 divisor, multiplier, shift;

    __device__ __forceinline__ u32 div(u32 n) const {
        return divisor == 1 ? n : __umulhi(n, multiplier) >> shift;
    }
    // Quotient; `n` becomes the remainder.
    __device__ __forceinline__ u32 split(u32 &n) const {
        const u32 q = div(n);
        n -= q * divisor;
        return q;
    }
};
