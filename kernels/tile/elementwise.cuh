// Functions of elements, one by one: chunks of 16 bytes, whatever the shape.
//
//     block -> 4 * 256 chunks in a row; thread t -> chunks t, t + 256, t + 512, t + 768 of them
//
//     all loads of a thread are under way before it computes; the last elements, which fill no chunk, go one at a time
#pragma once
#include "tile/types.cuh"

// As in Rust: `ops::elementwise::MapParams`.
struct MapParams {
    u64 in[2];
    u64 out;
    i64 elems;
};

namespace elementwise {

constexpr int THREADS = 256, TURNS = 4;

// What a thread reads or writes at once: 16 bytes where WIDE, else an element.
template <typename E, bool WIDE> constexpr int EACH = WIDE ? Chunk<E>::SIZE : 1;

// The same as it lies in memory: a thread that loads much before it computes keeps it so.
template <typename E, bool WIDE> struct RawOf {
    typedef uint4 Type;
};
template <typename E> struct RawOf<E, false> {
    typedef E Type;
};
template <typename E, bool WIDE> using Raw = typename RawOf<E, WIDE>::Type;

template <bool WIDE, typename E> static __device__ __forceinline__ Raw<E, WIDE> read(const E *p) {
    if constexpr (WIDE)
        return ptx::load_global_16(p);
    else
        return *p;
}

static __device__ __forceinline__ void write(T *p, uint4 raw) { ptx::store_global_16(p, raw); }
static __device__ __forceinline__ void write(T *p, T raw) { *p = raw; }

static __device__ __forceinline__ void widen(float (&v)[Chunk<T>::SIZE], uint4 raw) { unpack(v, raw, T()); }
static __device__ __forceinline__ void widen(float (&v)[1], T raw) { v[0] = to_float(raw); }

template <int N, typename E> static __device__ __forceinline__ void load(float (&v)[N], const E *p) {
    if constexpr (N == 1)
        v[0] = to_float(*p);
    else
        load_chunk(v, p);
}

template <int N, typename E> static __device__ __forceinline__ void store(E *p, const float (&v)[N]) {
    if constexpr (N == 1)
        *p = from_float<E>(v[0]);
    else
        store_chunk(p, v);
}

// N consecutive floats.
template <int N> static __device__ __forceinline__ void load_floats(float (&v)[N], const float *p) {
    if constexpr (N == 1) {
        v[0] = *p;
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            float four[4];
            load_chunk(four, p + i);
#pragma unroll
            for (int k = 0; k < 4; ++k) v[i + k] = four[k];
        }
    }
}

// out[i] = what f leaves in v[0] when it is given v[k][..] = in[k][i..] and i, for the elements of block `block`.
template <int IN, typename F>
static __device__ __forceinline__ void map(const MapParams &p, F f, u32 block = blockIdx.x) {
    constexpr int SIZE = Chunk<T>::SIZE;
    const i64 first = (static_cast<i64>(block) * (THREADS * TURNS) + threadIdx.x) * SIZE;
    T *const out = reinterpret_cast<T *>(p.out);
    uint4 raw[TURNS][IN];
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const i64 at = first + turn * (THREADS * SIZE);
        if (at + SIZE > p.elems) break;
#pragma unroll
        for (int k = 0; k < IN; ++k) raw[turn][k] = ptx::load_global_16(reinterpret_cast<const T *>(p.in[k]) + at);
    }
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const i64 at = first + turn * (THREADS * SIZE);
        float v[IN][SIZE];
        if (at + SIZE <= p.elems) {
#pragma unroll
            for (int k = 0; k < IN; ++k) unpack(v[k], raw[turn][k], T());
            f(v, at);
            store_chunk(out + at, v[0]);
            continue;
        }
        const int there = static_cast<int>(p.elems - at);
        if (at >= p.elems) return;
#pragma unroll
        for (int i = 0; i < SIZE; ++i)
#pragma unroll
            for (int k = 0; k < IN; ++k) v[k][i] = i < there ? to_float(reinterpret_cast<const T *>(p.in[k])[at + i]) : 0.0f;
        f(v, at);
#pragma unroll
        for (int i = 0; i < SIZE; ++i)
            if (i < there) out[at + i] = from_float<T>(v[0][i]);
        return;
    }
}

} // namespace elementwise
