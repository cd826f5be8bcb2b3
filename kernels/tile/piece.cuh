// What a thread reads and writes at a time: a chunk of 16 bytes where rows are made of those, else one element.
#pragma once
#include "tile/types.cuh"

// N elements from `p`, widened to f32: a chunk's, aligned to 16 bytes, or one.
template <typename E, int N> static __device__ __forceinline__ void load_piece(float (&v)[N], const E *p) {
    static_assert(N == 1 || N == Chunk<E>::SIZE, "a chunk or an element");
    if constexpr (N == 1)
        v[0] = to_float(*p);
    else
        load_chunk(v, p);
}

// Rounds to E and stores.
template <typename E, int N> static __device__ __forceinline__ void store_piece(E *p, const float (&v)[N]) {
    static_assert(N == 1 || N == Chunk<E>::SIZE, "a chunk or an element");
    if constexpr (N == 1)
        *p = from_float<E>(v[0]);
    else
        store_chunk(p, v);
}

// Consecutive elements of T: 16 bytes of them where rows allow it (WIDE), or one.
template <bool WIDE> struct Piece {
    static constexpr int SIZE = WIDE ? Chunk<T>::SIZE : 1;
    float v[SIZE];

    __device__ __forceinline__ void load(const T *p) { load_piece(v, p); }
    __device__ __forceinline__ void store(T *p) const { store_piece(p, v); }
};
