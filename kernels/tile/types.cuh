// The element type T of a kernel (define T_BF16 for bf16, else f32) and how it travels: alone, and in 16 bytes.
//
//     chunk: 16 bytes of consecutive elements   bf16 |e0 e1|e2 e3|e4 e5|e6 e7|     f32 |e0|e1|e2|e3|
//                                                     reg 0 reg 1 reg 2 reg 3
#pragma once
#include "ptx/bf16.cuh"
#include "ptx/memory.cuh"

#ifndef T_BF16
#define T_BF16 0
#endif

// A bf16 in memory. Arithmetic is done in f32.
struct bf16 {
    u16 bits;
};

template <bool BF16> struct Element;
template <> struct Element<true> {
    typedef bf16 Type;
};
template <> struct Element<false> {
    typedef float Type;
};
typedef typename Element<T_BF16 != 0>::Type T;

static __device__ __forceinline__ float to_float(float v) { return v; }
static __device__ __forceinline__ float to_float(bf16 v) { return __uint_as_float(static_cast<u32>(v.bits) << 16); }

template <typename E> static __device__ __forceinline__ E from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) {
    bf16 r;
    r.bits = static_cast<u16>(ptx::pack_bf16x2(v, 0.0f));
    return r;
}

// Elements in 16 bytes.
template <typename E> struct Chunk {
    static constexpr int SIZE = 16 / static_cast<int>(sizeof(E));
};

static __device__ __forceinline__ void unpack(float (&v)[4], uint4 r, float) {
    v[0] = __uint_as_float(r.x), v[1] = __uint_as_float(r.y), v[2] = __uint_as_float(r.z), v[3] = __uint_as_float(r.w);
}
static __device__ __forceinline__ void unpack(float (&v)[8], uint4 r, bf16) {
    v[0] = ptx::bf16_low(r.x), v[1] = ptx::bf16_high(r.x), v[2] = ptx::bf16_low(r.y), v[3] = ptx::bf16_high(r.y);
    v[4] = ptx::bf16_low(r.z), v[5] = ptx::bf16_high(r.z), v[6] = ptx::bf16_low(r.w), v[7] = ptx::bf16_high(r.w);
}

// A chunk of global memory that nobody writes meanwhile, widened to f32. `p` is aligned to 16 bytes.
template <typename E> static __device__ __forceinline__ void load_chunk(float (&v)[Chunk<E>::SIZE], const E *p) {
    unpack(v, ptx::load_global_16(p), E());
}

static __device__ __forceinline__ uint4 pack(const float (&v)[4], float) {
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
}
static __device__ __forceinline__ uint4 pack(const float (&v)[8], bf16) {
    return make_uint4(ptx::pack_bf16x2(v[0], v[1]), ptx::pack_bf16x2(v[2], v[3]), ptx::pack_bf16x2(v[4], v[5]),
                      ptx::pack_bf16x2(v[6], v[7]));
}

// Rounds to E and stores 16 bytes. `p` is aligned to 16 bytes.
template <typename E> static __device__ __forceinline__ void store_chunk(E *p, const float (&v)[Chunk<E>::SIZE]) {
    ptx::store_global_16(p, pack(v, E()));
}
