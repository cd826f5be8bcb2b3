// Layer normalisation of rows of channels.
//
// Maths, for every row, with mean m, biased variance, r = 1 / sqrt(var + eps), xh = (x - m) r and g = gy w:
//
//     y = xh w + b     gx = r (g - mean g - xh mean(g xh))     gw = sum over rows of gy xh     gb = sum over rows of gy
//
// Memory: x, y, gy, gx [rows, channels] of T; w, b [channels], moments [rows, 4] (high, low, r, 0), sums [blocks, 2, channels], all
// f32. CHUNKS > 0: channels are a multiple of a chunk of 16 bytes, at most lanes x CHUNKS of them.
//
//     grid  -> rows_of_block rows
//     block -> lanes x slots      slot: every slots-th row      lane: chunks lane, lane + lanes, .. of its row
//
//         row of slot 0 | lane 0 | lane 1 | .. | lane 0 | lane 1 | ..      lanes: a power of two from 4 to 256, so that a
//         row of slot 1 | ..                                               row is a part of a warp, a warp or some warps
//
//     CHUNKS == 0: a warp takes a row, channel by channel; bwd_sums: a thread takes a channel of some rows.
//     bwd_affine: 16 channels side by side, 16 slots of blocks below one another.
//
// Numerics: a row is read once and stays in registers as f32: its mean, then the mean and the squares of what is left without it.
// gw and gb: f32 sums of a thread's rows, then over slots, both in order, then over blocks in f64; `=`. The same bits in every run.
//
// Limits (H100, predicted; simulated only): memory, 3.35 TB/s. 2 sizeof(T) bytes an element for fwd, 3 for bwd, and 16 bytes a row;
// 8 and 14 operations an element.
#include "tile/types.cuh"

#ifndef CHUNKS
#define CHUNKS 0
#endif

constexpr int THREADS = 256, WARPS = THREADS / 32;

// As in Rust: `ops::layer_norm::cuda`.
struct ForwardParams {
    const T *x;
    const float *w, *b;
    T *y;
    float4 *moments;
    i64 rows;
    int channels, lanes, rows_of_block;
    float eps;
};

struct BackwardParams {
    const T *x, *gy;
    const float *w;
    const float4 *moments;
    T *gx;       // or 0
    float *sums; // or 0
    i64 rows;
    int channels, lanes, rows_of_block, pad;
};

struct AffineParams {
    const float *sums;
    float *gw, *gb;
    int parts, channels;
};

// Two sums over the lanes of a row, in all of them. All threads of the block call it.
static __device__ __forceinline__ float2 row_sums(float2 v, int lanes) {
    for (int offset = min(lanes, 32) / 2; offset > 0; offset /= 2) {
        v.x += __shfl_xor_sync(0xffffffffu, v.x, offset);
        v.y += __shfl_xor_sync(0xffffffffu, v.y, offset);
    }
    if (lanes <= 32) return v;
    __shared__ float2 shared[WARPS];
    const int warp = threadIdx.x / 32, warps = lanes / 32, first = warp / warps * warps;
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[warp] = v;
    __syncthreads();
    v = make_float2(0.0f, 0.0f);
    for (int i = first; i < first + warps; i++) v.x += shared[i].x, v.y += shared[i].y;
    return v;
}

static __device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

#if CHUNKS
constexpr int V = Chunk<T>::SIZE, QUADS = V / 4;

// Vectors of channels in shared memory, in the order in which lanes read them without conflicts: quad h of chunk c of lane l is
// quad (c QUADS + h) lanes + l.
static __device__ __forceinline__ int quad_at(int lanes, int chunk, int h, int lane) {
    return (chunk * QUADS + h) * lanes + lane;
}

// The first channel of a quad of shared memory.
static __device__ __forceinline__ int channel_of(int lanes, int quad) {
    const int lane = quad % lanes, rest = quad / lanes;
    return ((rest / QUADS) * lanes + lane) * V + rest % QUADS * 4;
}

static __device__ __forceinline__ float4 load_four(const float *p) {
    float v[4];
    load_chunk(v, p);
    return make_float4(v[0], v[1], v[2], v[3]);
}

// Most quads of a row.
constexpr int MOST_QUADS = THREADS * 2 * QUADS;

static __device__ __forceinline__ void stage(float4 (&to)[MOST_QUADS], const float *from, int lanes, int channels) {
    for (int quad = threadIdx.x; quad < lanes * CHUNKS * QUADS; quad += THREADS) {
        const int channel = channel_of(lanes, quad);
        to[quad] = channel < channels ? load_four(from + channel) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
}

static __device__ __forceinline__ void read_staged(float (&v)[V], const float4 (&from)[MOST_QUADS], int lanes, int chunk,
                                                   int lane) {
#pragma unroll
    for (int h = 0; h < QUADS; h++) {
        const float4 four = from[quad_at(lanes, chunk, h, lane)];
        v[4 * h] = four.x, v[4 * h + 1] = four.y, v[4 * h + 2] = four.z, v[4 * h + 3] = four.w;
    }
}

// Channels from which on a lane has nothing, as f32 zeros.
static __device__ __forceinline__ void read_row(float (&v)[CHUNKS][V], const T *row, int lanes, int lane, int channels,
                                                bool there) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int channel = (c * lanes + lane) * V;
#pragma unroll
        for (int k = 0; k < V; k++) v[c][k] = 0.0f;
        if (there && channel < channels) load_chunk(v[c], row + channel);
    }
}
#endif

// Defines: PASS_*, T_BF16, CHUNKS.
#if PASS_FWD
static_assert(sizeof(ForwardParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(THREADS, 2) layer_norm_fwd(const __grid_constant__ ForwardParams p) {
    const i64 begin = static_cast<i64>(blockIdx.x) * p.rows_of_block;
    const float inverse = 1.0f / static_cast<float>(p.channels);
#if CHUNKS
    __shared__ float4 staged[MOST_QUADS];
    const int lane = threadIdx.x % p.lanes, slot = threadIdx.x / p.lanes, slots = THREADS / p.lanes;
    float w[CHUNKS][V], b[CHUNKS][V];
    stage(staged, p.w, p.lanes, p.channels);
    __syncthreads();
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) read_staged(w[c], staged, p.lanes, c, lane);
    __syncthreads();
    stage(staged, p.b, p.lanes, p.channels);
    __syncthreads();
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) read_staged(b[c], staged, p.lanes, c, lane);
    for (int turn = 0; turn < p.rows_of_block; turn += slots) {
        const i64 row = begin + turn + slot;
        const bool there = turn + slot < p.rows_of_block && row < p.rows;
        float v[CHUNKS][V];
        read_row(v, p.x + row * p.channels, p.lanes, lane, p.channels, there);
        float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int k = 0; k < V; k++) sums.x += v[c][k];
        const float high = row_sums(sums, p.lanes).x * inverse;
        sums.x = 0.0f;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
            if ((c * p.lanes + lane) * V < p.channels) {
#pragma unroll
                for (int k = 0; k < V; k++) {
                    v[c][k] -= high;
                    sums.x += v[c][k];
                    sums.y = fmaf(v[c][k], v[c][k], sums.y);
                }
            }
        sums = row_sums(sums, p.lanes);
        // What the rounding of the mean has left is small: its square costs the variance no digits.
        const float low = sums.x * inverse;
        const float r = rsqrtf(fmaf(sums.y, inverse, -low * low) + p.eps);
        if (!there) continue;
        if (lane == 0) p.moments[row] = make_float4(high, low, r, 0.0f);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int channel = (c * p.lanes + lane) * V;
            if (channel >= p.channels) continue;
#pragma unroll
            for (int k = 0; k < V; k++) v[c][k] = fmaf((v[c][k] - low) * r, w[c][k], b[c][k]);
            store_chunk(p.y + row * p.channels + channel, v[c]);
        }
    }
#else
    const int lane = threadIdx.x % 32;
    for (int turn = threadIdx.x / 32; turn < p.rows_of_block && begin + turn < p.rows; turn += WARPS) {
        const i64 row = begin + turn;
        const T *const x = p.x + row * p.channels;
        float sum = 0.0f, squares = 0.0f;
        for (int i = lane; i < p.channels; i += 32) sum += to_float(x[i]);
        const float high = warp_sum(sum) * inverse;
        sum = 0.0f;
        for (int i = lane; i < p.channels; i += 32) {
            const float d = to_float(x[i]) - high;
            sum += d;
            squares = fmaf(d, d, squares);
        }
        const float low = warp_sum(sum) * inverse;
        const float r = rsqrtf(fmaf(warp_sum(squares), inverse, -low * low) + p.eps);
        if (lane == 0) p.moments[row] = make_float4(high, low, r, 0.0f);
        for (int i = lane; i < p.channels; i += 32)
            p.y[row * p.channels + i] = from_float<T>(fmaf(((to_float(x[i]) - high) - low) * r, p.w[i], p.b[i]));
    }
#endif
}

#elif PASS_BWD
static_assert(sizeof(BackwardParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_bwd(const __grid_constant__ BackwardParams p) {
    const i64 begin = static_cast<i64>(blockIdx.x) * p.rows_of_block;
    const float inverse = 1.0f / static_cast<float>(p.channels);
#if CHUNKS
    __shared__ float4 staged[MOST_QUADS];
    __shared__ float4 shared[THREADS * CHUNKS * QUADS];
    const int lane = threadIdx.x % p.lanes, slot = threadIdx.x / p.lanes, slots = THREADS / p.lanes;
    stage(staged, p.w, p.lanes, p.channels);
    __syncthreads();
    float gw[CHUNKS][V] = {}, gb[CHUNKS][V] = {};
    for (int turn = 0; turn < p.rows_of_block; turn += slots) {
        const i64 row = begin + turn + slot;
        const bool there = turn + slot < p.rows_of_block && row < p.rows;
        float x[CHUNKS][V], g[CHUNKS][V];
        read_row(x, p.x + row * p.channels, p.lanes, lane, p.channels, there);
        read_row(g, p.gy + row * p.channels, p.lanes, lane, p.channels, there);
        const float4 m = there ? load_four(reinterpret_cast<const float *>(p.moments + row)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            float w[V];
            read_staged(w, staged, p.lanes, c, lane);
#pragma unroll
            for (int k = 0; k < V; k++) {
                // Channels that are not there have gy = 0 and w = 0.
                x[c][k] = ((x[c][k] - m.x) - m.y) * m.z;
                gw[c][k] = fmaf(g[c][k], x[c][k], gw[c][k]);
                gb[c][k] += g[c][k];
                g[c][k] *= w[k];
                sums.x += g[c][k];
                sums.y = fmaf(g[c][k], x[c][k], sums.y);
            }
        }
        sums = row_sums(sums, p.lanes);
        if (!there || !p.gx) continue;
        const float mean = sums.x * inverse, slope = sums.y * inverse;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int channel = (c * p.lanes + lane) * V;
            if (channel >= p.channels) continue;
#pragma unroll
            for (int k = 0; k < V; k++) g[c][k] = m.z * (g[c][k] - mean - x[c][k] * slope);
            store_chunk(p.gx + row * p.channels + channel, g[c]);
        }
    }
    if (!p.sums) return;
    // Slots of a warp, then those of the block.
    for (int offset = p.lanes; offset < 32; offset *= 2)
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int k = 0; k < V; k++) {
                gw[c][k] += __shfl_xor_sync(0xffffffffu, gw[c][k], offset);
                gb[c][k] += __shfl_xor_sync(0xffffffffu, gb[c][k], offset);
            }
    const int left = min(slots, WARPS), quads = p.lanes * CHUNKS * QUADS;
    const int part = p.lanes < 32 ? threadIdx.x / 32 : slot;
#pragma unroll
    for (int plane = 0; plane < 2; plane++) {
        __syncthreads();
        if (p.lanes >= 32 || threadIdx.x % 32 < p.lanes) {
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                for (int h = 0; h < QUADS; h++) {
                    const float *const v = plane == 0 ? gw[c] : gb[c];
                    shared[part * quads + quad_at(p.lanes, c, h, lane)] =
                        make_float4(v[4 * h], v[4 * h + 1], v[4 * h + 2], v[4 * h + 3]);
                }
        }
        __syncthreads();
        for (int quad = threadIdx.x; quad < quads; quad += THREADS) {
            const int channel = channel_of(p.lanes, quad);
            if (channel >= p.channels) continue;
            float total[4] = {};
            for (int s = 0; s < left; s++) {
                const float4 v = shared[s * quads + quad];
                total[0] += v.x, total[1] += v.y, total[2] += v.z, total[3] += v.w;
            }
            store_chunk(p.sums + (static_cast<size_t>(blockIdx.x) * 2 + plane) * p.channels + channel, total);
        }
    }
#else
    const int lane = threadIdx.x % 32;
    for (int turn = threadIdx.x / 32; turn < p.rows_of_block && begin + turn < p.rows; turn += WARPS) {
        const i64 row = begin + turn;
        const T *const x = p.x + row * p.channels, *const gy = p.gy + row * p.channels;
        const float4 m = p.moments[row];
        float mean = 0.0f, slope = 0.0f;
        for (int i = lane; i < p.channels; i += 32) {
            const float g = to_float(gy[i]) * p.w[i];
            mean += g;
            slope = fmaf(g, ((to_float(x[i]) - m.x) - m.y) * m.z, slope);
        }
        mean = warp_sum(mean) * inverse, slope = warp_sum(slope) * inverse;
        for (int i = lane; i < p.channels; i += 32) {
            const float xh = ((to_float(x[i]) - m.x) - m.y) * m.z;
            p.gx[row * p.channels + i] = from_float<T>(m.z * (to_float(gy[i]) * p.w[i] - mean - xh * slope));
        }
    }
#endif
}

#elif PASS_BWD_SUMS
static_assert(sizeof(BackwardParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_bwd_sums(const __grid_constant__ BackwardParams p) {
    const int blocks = (p.channels + THREADS - 1) / THREADS, channel = blockIdx.x % blocks * THREADS + threadIdx.x;
    if (channel >= p.channels) return;
    const i64 part = blockIdx.x / blocks, begin = part * p.rows_of_block, end = min(begin + p.rows_of_block, p.rows);
    float gw = 0.0f, gb = 0.0f;
#pragma unroll 4
    for (i64 row = begin; row < end; row++) {
        const float4 m = p.moments[row];
        const float gy = to_float(p.gy[row * p.channels + channel]);
        gw = fmaf(gy, ((to_float(p.x[row * p.channels + channel]) - m.x) - m.y) * m.z, gw);
        gb += gy;
    }
    p.sums[part * 2 * p.channels + channel] = gw;
    p.sums[(part * 2 + 1) * p.channels + channel] = gb;
}

#elif PASS_BWD_AFFINE
static_assert(sizeof(AffineParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(THREADS) layer_norm_bwd_affine(const __grid_constant__ AffineParams p) {
    constexpr int LANES = 16, SLOTS = THREADS / LANES;
    __shared__ double shared[2][SLOTS][LANES];
    const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES, channel = blockIdx.x * LANES + lane;
    double gw = 0.0, gb = 0.0;
    if (channel < p.channels) {
#pragma unroll 4
        for (int part = slot; part < p.parts; part += SLOTS) {
            const float *const from = p.sums + static_cast<size_t>(part) * 2 * p.channels + channel;
            gw += from[0], gb += from[p.channels];
        }
    }
    shared[0][slot][lane] = gw, shared[1][slot][lane] = gb;
    __syncthreads();
    if (slot >= 2 || channel >= p.channels) return;
    double total = 0.0;
    for (int s = 0; s < SLOTS; s++) total += shared[slot][s][lane];
    (slot == 0 ? p.gw : p.gb)[channel] = static_cast<float>(total);
}
#endif
