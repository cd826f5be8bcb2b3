// Bytes of images as numbers.
#pragma once
#include "ptx/memory.cuh"

// `there` of E bytes from `from` on, and 0 for the others. `whole`: all are there, and their address is a multiple of E.
template <int E>
static __device__ __forceinline__ void load_pixels(float (&v)[E], const u8 *from, int there, bool whole) {
    static_assert(E == 4 || E == 8, "a load of 4 or 8 bytes");
    if (whole) {
        u32 words[E / 4];
        if constexpr (E == 8) {
            const uint2 two = *reinterpret_cast<const uint2 *>(from);
            words[0] = two.x, words[1] = two.y;
        } else {
            words[0] = *reinterpret_cast<const u32 *>(from);
        }
#pragma unroll
        for (int i = 0; i < E; i++) v[i] = static_cast<float>(words[i / 4] >> (8 * (i % 4)) & 255u);
    } else {
#pragma unroll
        for (int i = 0; i < E; i++) v[i] = i < there ? static_cast<float>(from[i]) : 0.0f;
    }
}
