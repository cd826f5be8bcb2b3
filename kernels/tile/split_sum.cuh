// Adds the sums of all splits of K, in order, and finishes them.
//
//     outputs (forward, input gradient)                           weights
//     block: 256 threads = COLUMNS chunks of channels x rows      a thread: one weight, or four
//     a thread: its chunk in every (256 / COLUMNS)-th row of the block's ROWS rows
//
//         y = epilogue(partial[0] + partial[1] + ..)              dw = sums[0] + sums[1] + ..
#pragma once
#include "tile/fast_div.cuh"
#include "tile/output.cuh"

// Rows of a block, and threads of it.
constexpr int SUM_ROWS = 64, SUM_THREADS = 256;

// As in Rust: `implicit_gemm::params::SplitOutput`.
struct SplitOutputParams {
    Epilogue out;
    int splits;
    int images;
    int height, width; // of y
    int columns;       // chunks of channels of a block: a power of two up to 32
    int unit_images;   // 1 for statistics, else all: rows of a block belong to one unit
    int tiles;         // blocks of a unit
    int pad;
};

static __device__ __forceinline__ void split_output(const SplitOutputParams &p) {
    constexpr int E = Chunk<T>::SIZE;
    const int lane = threadIdx.x % p.columns, first = threadIdx.x / p.columns, step = SUM_THREADS / p.columns;
    const int channel = (blockIdx.y * p.columns + lane) * E;
    const int tile = blockIdx.x % p.tiles, unit = blockIdx.x / p.tiles;
    const Epilogue &e = p.out;
    const int there = e.channels - channel;
    const bool whole = e.channels % E == 0;
    const i64 pixels = static_cast<i64>(p.images) * p.height * p.width;
    const int count = p.unit_images * p.height * p.width;
    const ChannelVectors<E> vectors(e, channel, there, whole && there > 0);
    // Two threads whose chunks lie side by side, so that what they read together is whole sectors.
    const int odd = lane & 1;
    const bool paired = E == 8 && whole && p.columns > 1 && channel - odd * E + 2 * E <= e.channels;
#if STATS
    Moments moments[E];
#pragma unroll
    for (int i = 0; i < E; i++) moments[i] = Moments{0.0f, 0.0f, 0.0f};
#endif
    for (int r = tile * SUM_ROWS + first; r < min(count, (tile + 1) * SUM_ROWS) && there > 0; r += step) {
        const i64 at = static_cast<i64>(unit) * count + r;
        float v[E];
#pragma unroll
        for (int i = 0; i < E; i++) v[i] = 0.0f;
        for (int s = 0; s < p.splits; s++) {
            const float *from = e.partial + (s * pixels + at) * e.channels + channel;
#pragma unroll
            for (int part = 0; part < E / 4; part++) {
                if (whole) {
                    // In pairs of threads the even one reads first halves' neighbours: 32 bytes of a pair lie together.
                    const int place = paired ? (part - odd) * E + odd * 4 : part * 4;
                    float four[4];
                    load_chunk(four, from + place);
#pragma unroll
                    for (int i = 0; i < 4; i++) v[part * 4 + i] += four[i];
                } else {
#pragma unroll
                    for (int i = part * 4; i < part * 4 + 4; i++)
                        if (i < there) v[i] += from[i];
                }
            }
        }
        if constexpr (E == 8) {
            if (paired) {
                // An even thread holds first halves of both chunks, an odd one second halves: each gives the other's away.
                const u32 pair = 3u << (threadIdx.x & 30);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float other = __shfl_xor_sync(pair, odd ? v[i] : v[E - 4 + i], 1);
                    if (odd)
                        v[i] = other;
                    else
                        v[E - 4 + i] = other;
                }
            }
        }
        i64 residual = at;
        if (e.residual_shift) {
            const int per_image = p.height * p.width;
            const i64 image = at / per_image;
            const int rest = static_cast<int>(at - image * per_image), y = rest / p.width, x = rest - y * p.width;
            residual = (image * (p.height >> 1) + (y >> 1)) * (p.width >> 1) + (x >> 1);
        }
        write_chunk(v, e, vectors, at, residual, channel, there, whole);
#if STATS
#pragma unroll
        for (int i = 0; i < E; i++) moments[i].merge(1.0f, v[i], 0.0f);
#endif
    }
#if STATS
    // Threads of the same channels, in the order of their first rows.
    __shared__ float board[3][SUM_THREADS * E];
#pragma unroll
    for (int i = 0; i < E; i++) {
        const int slot = i * SUM_THREADS + threadIdx.x;
        board[0][slot] = moments[i].count, board[1][slot] = moments[i].mean, board[2][slot] = moments[i].m2;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < p.columns * E; c += SUM_THREADS) {
        if (blockIdx.y * p.columns * E + c >= e.channels) continue;
        Moments all = {0.0f, 0.0f, 0.0f};
        for (int t = c / E; t < SUM_THREADS; t += p.columns) {
            const int slot = c % E * SUM_THREADS + t;
            all.merge(board[0][slot], board[1][slot], board[2][slot]);
        }
        e.stats[static_cast<i64>(blockIdx.x) * e.channels + blockIdx.y * p.columns * E + c] =
            make_float2(all.mean, all.m2);
    }
#endif
}

// As in Rust: `implicit_gemm::params::SplitWeight`.
struct SplitWeightParams {
    const float *sums; // [splits, rows, taps * channels]
    float *dw;         // row `dw_row`, tap `dw_tap` elements apart
    int splits;
    int rows;          // of all groups
    int columns;       // taps * channels
    int dw_row, dw_tap;
    int blocks;        // of a row
    FastDiv channels;
    int pad;
};

// Grid: for every row, blocks of 256 threads over its chunks of four columns, or its columns where four do not fit.
static __device__ __forceinline__ void split_weight(const SplitWeightParams &p) {
    const bool whole = p.channels.divisor % 4 == 0 && p.dw_row % 4 == 0 && p.dw_tap % 4 == 0 &&
                       (reinterpret_cast<u64>(p.dw) & 15) == 0;
    const int n = (blockIdx.x % p.blocks * SUM_THREADS + threadIdx.x) * (whole ? 4 : 1);
    if (n >= p.columns) return;
    const i64 row = blockIdx.x / p.blocks, split = static_cast<i64>(p.rows) * p.columns;
    const float *from = p.sums + row * p.columns + n;
    u32 channel = n;
    const u32 tap = p.channels.split(channel);
    float *to = p.dw + row * p.dw_row + tap * p.dw_tap + channel;
    float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int s = 0; s < p.splits; s++, from += split) {
        if (whole) {
            float four[4];
            load_chunk(four, from);
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] += four[i];
        } else {
            v[0] += from[0];
        }
    }
    if (whole)
        store_chunk(to, v);
    else
        to[0] = v[0];
}
