// What happens to a block's tile of C on its way from registers to global memory.
//
//     accumulators --strips of 16 (bf16) or 32 (f32) rows, a warp's own shared memory--> rows of whole chunks
//         bias, scale, residual, activation, rounding (tile/output.cuh)           16 bytes a lane
//         mean and sum of squared deviations of y over the tile's rows, a channel: rows of a lane in order, then lanes,
//         then warps
//
//         warp's strip                lanes of a pass (WN = 64, bf16)
//         +--------------------+      row 0: lanes 0..7, 8 channels each
//         | 16 x (WN + 8) f32  |  ->  row 1: lanes 8..15
//         +--------------------+      ..  4 passes
#pragma once
#include "tile/gemm_mainloop.cuh"
#include "tile/output.cuh"

constexpr int PITCH = WN + 8;

// Reads E floats of a row. With eight, lanes 4 to 7 of every eight begin with their second half: lanes are then on
// different banks.
template <int E> static __device__ __forceinline__ void read_row(float (&v)[E], const float *from, int lane) {
    if constexpr (E == 4) {
        const float4 a = *reinterpret_cast<const float4 *>(from);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    } else {
        const int first = lane & 4;
        const float4 a = *reinterpret_cast<const float4 *>(from + first);
        const float4 b = *reinterpret_cast<const float4 *>(from + (first ^ 4));
        const float4 low = first ? b : a, high = first ? a : b;
        v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
        v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    }
}

// Goes through the warp's part of C row by row: `body(row, v)` gets the row in the block's tile and E successive values
// from column `lane % (WN / E) * E` of the warp on.
template <int E, typename Product, typename Body>
static __device__ __forceinline__ void for_each_row(const Product &product, u8 *shared, Body body) {
    constexpr int LANES = WN / E, ROWS = 32 / LANES, STRIP = Product::STRIP;
    static_assert(LANES <= 32 && STRIP % ROWS == 0, "whole passes");
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    float *strip = reinterpret_cast<float *>(shared) + warp * STRIP * PITCH;
    // The strips are written by unrolled code, as registers have no index; what follows is there once.
#pragma unroll 1
    for (int s = 0; s < WM / STRIP; s++) {
#pragma unroll
        for (int i = 0; i < WM / STRIP; i++)
            if (i == s) product.stage_strip(strip, PITCH, i, lane);
        __syncwarp();
#pragma unroll 1
        for (int pass = 0; pass < STRIP / ROWS; pass++) {
            const int r = pass * ROWS + lane / LANES;
            float v[E];
            read_row<E>(v, strip + r * PITCH + lane % LANES * E, lane);
            body(warp / WARPS_N * WM + s * STRIP + r, v);
        }
        __syncwarp();
    }
}

// Writes the tile as f32 to rows of `pitch` elements: partial sums, and weight gradients. `rows(row)` gives the number
// of the row in `to`, or -1.
template <typename Product, typename Rows>
static __device__ __forceinline__ void store_sums(const Product &product, u8 *shared, float *to, i64 pitch, int n0,
                                                  int columns, const Rows &rows) {
    constexpr int E = 4;
    const int lane = threadIdx.x & 31;
    const int n = n0 + (threadIdx.x >> 5) % WARPS_N * WN + lane % (WN / E) * E;
    const bool whole = (pitch & 3) == 0 && (reinterpret_cast<u64>(to) & 15) == 0 && n + E <= columns;
    for_each_row<E>(product, shared, [&](int row, float(&v)[E]) {
        const i64 at = rows.output(row);
        if (at < 0) return;
        if (whole) {
            store_chunk(to + at * pitch + n, v);
        } else {
#pragma unroll
            for (int e = 0; e < E; e++)
                if (n + e < columns) to[at * pitch + n + e] = v[e];
        }
    });
}

// Writes the tile as y. Columns n0 .. of the product are channels `channel0 + n0 ..`; `columns` of them exist.
template <typename Product, typename Rows>
static __device__ __forceinline__ void store_output(const Product &product, u8 *shared, const Epilogue &e, int n0,
                                                    int columns, int channel0, const Rows &rows) {
    constexpr int E = Chunk<T>::SIZE, LANES = WN / E;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int n = n0 + warp % WARPS_N * WN + lane % LANES * E;
    const int channel = channel0 + n;
    const bool whole = e.channels % E == 0 && channel0 % E == 0 && n + E <= columns;
    const ChannelVectors<E> vectors(e, channel, columns - n, whole);
#if STATS
    Moments moments[E];
#pragma unroll
    for (int i = 0; i < E; i++) moments[i] = Moments{0.0f, 0.0f, 0.0f};
#endif
    for_each_row<E>(product, shared, [&](int row, float(&v)[E]) {
        const i64 at = rows.output(row);
        if (at < 0 || n >= columns) return;
        const i64 from = e.residual ? rows.residual(row, at, e.residual_shift) : 0;
        write_chunk(v, e, vectors, at, from, channel, columns - n, whole);
#if STATS
#pragma unroll
        for (int i = 0; i < E; i++) moments[i].merge(1.0f, v[i], 0.0f);
#endif
    });
#if STATS
    // Lanes of the same channels are LANES apart.
#pragma unroll
    for (int step = LANES; step < 32; step *= 2)
#pragma unroll
        for (int i = 0; i < E; i++) {
            // The lower lane's numbers come first, whoever merges.
            Moments mine = moments[i], other;
            other.count = __shfl_xor_sync(0xffffffffu, mine.count, step);
            other.mean = __shfl_xor_sync(0xffffffffu, mine.mean, step);
            other.m2 = __shfl_xor_sync(0xffffffffu, mine.m2, step);
            const bool upper = lane & step;
            Moments first = upper ? other : mine;
            const Moments second = upper ? mine : other;
            first.merge(second.count, second.mean, second.m2);
            moments[i] = first;
        }
    // Warps one below the other: through shared memory, the first row of warps writes.
    __syncthreads();
    float *board = reinterpret_cast<float *>(shared);
    const int column = warp % WARPS_N * WN + lane * E;
    if (lane < LANES)
#pragma unroll
        for (int i = 0; i < E; i++) {
            float *slot = board + (warp / WARPS_N * BN + column + i) * 3;
            slot[0] = moments[i].count, slot[1] = moments[i].mean, slot[2] = moments[i].m2;
        }
    __syncthreads();
    // Two channels a thread: 16 bytes.
    const bool pairs = e.channels % 2 == 0 && channel0 % 2 == 0;
    for (int c = threadIdx.x * 2; c < BN; c += THREADS * 2) {
        Moments all[2] = {{0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f}};
#pragma unroll
        for (int i = 0; i < 2; i++)
            for (int w = 0; w < WARPS_M; w++) {
                const float *slot = board + (w * BN + c + i) * 3;
                all[i].merge(slot[0], slot[1], slot[2]);
            }
        float2 *to = e.stats + rows.stats() * e.channels + channel0 + n0 + c;
        if (pairs && n0 + c + 1 < columns) {
            const float four[4] = {all[0].mean, all[0].m2, all[1].mean, all[1].m2};
            store_chunk(reinterpret_cast<float *>(to), four);
        } else {
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (n0 + c + i < columns) to[i] = make_float2(all[i].mean, all[i].m2);
        }
    }
#endif
}
