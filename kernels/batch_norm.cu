// Batch normalisation, with a residual and a ReLU behind it.
//
// Maths, for every channel over all rows, with mean m, biased variance (of the batch, or given) and r = 1 / sqrt(var + eps):
//
//     z = (x - m) r w + b + residual = (x - high) slope + offset + residual     y = z or max(z, 0)
//     gz = gy where y > 0     gw = sum gz (x - m) r     gb = sum gz     g residual = gz
//     gx = r w (gz - mean gz - (x - m) r mean(gz (x - m) r)) with moments of the batch, r w gz with given ones
//
// Memory: x, residual, y, gy, gx [rows, channels] of T; statistics [parts, channels] (high, low, m2, 0) of parts of the rows
// or, from a convolution, [images, channels] (mean, m2); affine and tangent [3, channels], moments [channels, 4] (high, low, r, 0), all f32. VEC: the channels are
// a multiple of a chunk of 16 bytes.
//
//     stats, fwd, bwd_sums, bwd_apply    grid -> (part of rows, run of channels), see tile/by_channel.cuh
//     moments, bwd_moments               grid -> 16 channels: 16 threads side by side, 16 slots of parts below one another
//     frozen                             thread -> channel
//
// Numerics: moments of parts in f32 about a value of theirs; merged over parts in f64, in a fixed order. The mean is subtracted as
// an f32, what that leaves of it is part of the offset. Elements are f32 until they are stored; `=`. The ReLU's mask is
// computed again from x, or with a residual read from y.
//
// Limits (H100, predicted; simulated only): memory, 3.35 TB/s. Bytes an element: sizeof(T) times 1 for stats, 2 (3 with a residual)
// for fwd, 2 (4) for bwd_sums, 3 for bwd_apply; at most 10 operations an element.
#include "tile/by_channel.cuh"

#ifndef FOLLOW
#define FOLLOW 0
#endif
#ifndef RESIDUAL
#define RESIDUAL 0
#endif

// Blocks that only see statistics: channels side by side, and slots of parts.
constexpr int LANES = 16, SLOTS = 16, SMALL = LANES * SLOTS;

// As in Rust: `ops::batch_norm::cuda`.
struct StatsParams {
    by_channel::Cover cover;
    const T *x;
    float4 *out;
};

// Of parts of the rows (QUADS), or of images as convolutions leave them.
#ifndef QUADS
#define QUADS 0
#endif
template <bool Q> struct Statistics {
    typedef float2 Type;
};
template <> struct Statistics<true> {
    typedef float4 Type;
};

struct MomentsParams {
    const Statistics<QUADS != 0>::Type *stats;
    const float *w, *b;
    float *affine;
    float4 *moments;
    float *mean, *variance; // of the batch, the variance unbiased
    i64 rows;               // of all parts
    int channels, parts;
    int rows_of_part;
    float eps;
};

struct FrozenParams {
    const float *mean, *variance, *w, *b;
    float *affine;
    float4 *moments;
    int channels;
    float eps;
};

struct ForwardParams {
    by_channel::Cover cover;
    const T *x, *residual;
    const float *affine;
    T *y;
};

struct SumsParams {
    by_channel::Cover cover;
    const T *x, *gy, *y;
    const float *affine;
    T *gz;
    float2 *out;
};

struct BackwardMomentsParams {
    const float2 *sums;
    const float *w;
    const float4 *moments;
    float *tangent, *gw, *gb;
    i64 rows;
    int channels, parts;
    int frozen, pad;
};

struct MapParams {
    by_channel::Cover cover;
    const T *x, *gy;
    const float *affine, *tangent;
    T *gx;
};

// Coefficients of a channel.
static __device__ __forceinline__ void finish(double mean, double variance, float eps, double w, double b, int channel,
                                              int channels, float *affine, float4 *moments) {
    const by_channel::Split m(mean);
    const float r = static_cast<float>(1.0 / sqrt(variance + static_cast<double>(eps)));
    const double slope = r * w;
    affine[channel] = m.high;
    affine[channels + channel] = static_cast<float>(slope);
    affine[2 * channels + channel] = static_cast<float>(b - m.low * slope);
    moments[channel] = make_float4(m.high, m.low, r, 0.0f);
}

// The sum over the slots of a lane, in order, in slot 0.
static __device__ __forceinline__ double slot_sum(double v, double (&shared)[SLOTS][LANES], int lane, int slot) {
    __syncthreads();
    shared[slot][lane] = v;
    __syncthreads();
    v = 0.0;
    if (slot == 0)
        for (int s = 0; s < SLOTS; s++) v += shared[s][lane];
    return v;
}

// Defines: PASS_*, T_BF16, VEC, FOLLOW (0 nothing, 1 ReLU, 3 ReLU whose mask is that of y), RESIDUAL, QUADS.
#if PASS_STATS
static_assert(sizeof(StatsParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(by_channel::THREADS, 2)
    batch_norm_stats(const __grid_constant__ StatsParams p) {
    by_channel::moments(p.cover, p.x, p.out);
}

#elif PASS_MOMENTS
static_assert(sizeof(MomentsParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(SMALL) batch_norm_moments(const __grid_constant__ MomentsParams p) {
    __shared__ double shared[SLOTS][LANES];
    const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES, channel = blockIdx.x * LANES + lane;
    by_channel::Union all;
    if (channel < p.channels) {
#pragma unroll 4
        for (int part = slot; part < p.parts; part += SLOTS) {
            const i64 left = p.rows - static_cast<i64>(part) * p.rows_of_part;
            all.add(static_cast<double>(min(left, static_cast<i64>(p.rows_of_part))),
                    p.stats[static_cast<size_t>(part) * p.channels + channel]);
        }
    }
    all.count = static_cast<double>(p.rows);
    all.sum = slot_sum(all.sum, shared, lane, slot);
    all.squares = slot_sum(all.squares, shared, lane, slot);
    if (slot != 0 || channel >= p.channels) return;
    const double mean = all.mean(), m2 = all.m2();
    p.mean[channel] = static_cast<float>(mean);
    p.variance[channel] = static_cast<float>(m2 / (all.count - 1.0));
    finish(mean, m2 / all.count, p.eps, p.w[channel], p.b[channel], channel, p.channels, p.affine, p.moments);
}

#elif PASS_FROZEN
static_assert(sizeof(FrozenParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(SMALL) batch_norm_frozen(const __grid_constant__ FrozenParams p) {
    const int channel = blockIdx.x * SMALL + threadIdx.x;
    if (channel >= p.channels) return;
    finish(p.mean[channel], p.variance[channel], p.eps, p.w[channel], p.b[channel], channel, p.channels, p.affine,
           p.moments);
}

#elif PASS_FWD
static_assert(sizeof(ForwardParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(by_channel::THREADS) batch_norm_fwd(const __grid_constant__ ForwardParams p) {
    using namespace by_channel;
    const Place at(p.cover);
    Coefficients<3> affine;
    affine.load(p.cover, at, p.affine);
    if (!at.here) return;
    size_t from = static_cast<size_t>(at.begin + at.slot) * p.cover.channels + at.channel;
    const size_t step = static_cast<size_t>(p.cover.slots) * p.cover.channels;
#pragma unroll 4
    for (int row = at.begin + at.slot; row < at.end; row += p.cover.slots, from += step) {
        float v[V], residual[V] = {};
        read(v, p.x + from);
        if (RESIDUAL) read(residual, p.residual + from);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float z = fmaf(v[k] - affine.row[HIGH][k], affine.row[SLOPE][k], affine.row[OFFSET][k]);
            v[k] = follow<FOLLOW>(RESIDUAL ? z + residual[k] : z);
        }
        write(p.y + from, v);
    }
}

#elif PASS_BWD_SUMS
static_assert(sizeof(SumsParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(by_channel::THREADS, 2)
    batch_norm_bwd_sums(const __grid_constant__ SumsParams p) {
    by_channel::gradient_sums<FOLLOW>(p.cover, p.x, p.gy, p.y, p.gz, p.affine, p.out);
}

#elif PASS_BWD_MOMENTS
static_assert(sizeof(BackwardMomentsParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(SMALL)
    batch_norm_bwd_moments(const __grid_constant__ BackwardMomentsParams p) {
    __shared__ double shared[SLOTS][LANES];
    const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES, channel = blockIdx.x * LANES + lane;
    double a = 0.0, b = 0.0;
    if (channel < p.channels) {
#pragma unroll 4
        for (int part = slot; part < p.parts; part += SLOTS) {
            const float2 s = p.sums[static_cast<size_t>(part) * p.channels + channel];
            a += s.x, b += s.y;
        }
    }
    a = slot_sum(a, shared, lane, slot);
    b = slot_sum(b, shared, lane, slot);
    if (slot != 0 || channel >= p.channels) return;
    const float4 m = p.moments[channel];
    const double low = m.y, r = m.z, own = r * p.w[channel], with_x = r * (b - low * a);
    const double tilt = p.frozen ? 0.0 : own * r * with_x / static_cast<double>(p.rows);
    p.gw[channel] = static_cast<float>(with_x);
    p.gb[channel] = static_cast<float>(a);
    p.tangent[channel] = static_cast<float>(own);
    p.tangent[p.channels + channel] = static_cast<float>(tilt);
    p.tangent[2 * p.channels + channel] =
        p.frozen ? 0.0f : static_cast<float>(low * tilt - own * a / static_cast<double>(p.rows));
}

#elif PASS_BWD_APPLY
static_assert(sizeof(MapParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(by_channel::THREADS, 2)
    batch_norm_bwd_apply(const __grid_constant__ MapParams p) {
    by_channel::gradient_map<FOLLOW>(p.cover, p.x, p.gy, p.affine, p.tangent, p.gx);
}
#endif
