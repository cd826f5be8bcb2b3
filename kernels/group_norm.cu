// Group normalisation, with modulation, SiLU and 2x2 averaging behind it.
//
// Maths, for every sample and group of channels, with mean m, biased variance and r = 1 / sqrt(var + eps):
//
//     u = w (1 + scale)     z = (x - m) r u + b (1 + scale) + shift = (x - high) slope + offset     y = z or z sigmoid(z)
//     A = sum gz, B = sum gz (x - m) r     gx = r (gz u - mean(gz u) - (x - m) r mean(gz u (x - m) r))
//     gw = sum over samples of (1 + scale) B     gb = .. of (1 + scale) A     gscale = w B + b A     gshift = A
//
// Memory: x, y, gy, gx [samples, rows, channels] of T; statistics [samples, parts, channels] (high, low, m2, 0) or
// [samples, channels] (mean, m2), affine and tangent [samples, 3, channels], moments [samples, groups, 4] (high, low, r, 0), all f32. The group's channels may come from two maps
// that are read where they lie. VEC: the channels of each are a multiple of a chunk of 16 bytes.
//
//     stats, apply, bwd_sums, bwd_apply    grid -> (sample, part of rows, run of channels), see tile/by_channel.cuh
//     coefficients, bwd_coefficients       grid -> (sample, group), 128 threads over its channels and parts
//     merge                                thread -> (sample, channel)
//     bwd_affine                           thread -> channel, over samples
//
// Numerics: moments of parts in f32 about a value of theirs; merged over parts, channels and samples in f64, in a fixed order.
// The mean is subtracted as an f32, what that leaves of it is part of the offset. Elements are f32 until they are stored; `=`.
//
// Limits (H100, predicted; simulated only): memory, 3.35 TB/s. sizeof(T) bytes an element for stats, 2 for apply (1.25 with
// pooling), 2 for bwd_sums, 3 for bwd_apply; about 10 operations an element.
#include "tile/by_channel.cuh"

#ifndef FOLLOW
#define FOLLOW 0
#endif
#ifndef POOL
#define POOL 0
#endif

constexpr int SMALL = 128; // threads of a block that only sees statistics

// As in Rust: `ops::group_norm::cuda`.
struct StatsParams {
    by_channel::Cover cover;
    const T *x;
    float4 *out;
};

struct MergeParams {
    const float4 *parts;
    float2 *out;
    int channels, count, rows, rows_of_part;
    i64 all; // samples times channels
};

// Statistics of some of the channels: of parts (QUADS), or of whole samples as convolutions leave them.
#ifndef QUADS
#define QUADS 0
#endif
template <bool Q> struct Statistics {
    typedef float2 Type;
};
template <> struct Statistics<true> {
    typedef float4 Type;
};

struct Source {
    const Statistics<QUADS != 0>::Type *stats;
    int channels, parts;
    int rows, rows_of_part;
};

struct CoefficientsParams {
    Source source[2];
    const float *w, *b, *scale_shift;
    float *affine;
    float4 *moments;
    int channels, groups;
    float eps;
    int pad;
};

struct ApplyParams {
    by_channel::Cover cover;
    const T *x[2];
    const float *affine;
    T *y;
    int split; // channels of x[0]
    int width; // of y, where it is pooled
};

struct SumsParams {
    by_channel::Cover cover;
    const T *x, *gy;
    const float *affine;
    float2 *out;
};

struct BackwardCoefficientsParams {
    const float2 *sums;
    const float *w, *b, *scale_shift;
    const float4 *moments;
    float *tangent;
    float2 *totals;     // [samples, channels] (A, B)
    float *scale_shift_gradient; // or 0
    int channels, groups, parts, rows;
};

struct AffineParams {
    const float2 *totals;
    const float *scale_shift;
    float *gw, *gb;
    int samples, channels;
};

struct MapParams {
    by_channel::Cover cover;
    const T *x, *gy;
    const float *affine, *tangent;
    T *gx;
};

// Defines: PASS_*, T_BF16, VEC, FOLLOW (0 nothing, 2 SiLU), POOL, QUADS.
#if PASS_STATS
static_assert(sizeof(StatsParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(by_channel::THREADS, 2) group_norm_stats(const __grid_constant__ StatsParams p) {
    by_channel::moments(p.cover, p.x, p.out);
}

#elif PASS_MERGE
static_assert(sizeof(MergeParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(SMALL) group_norm_merge(const __grid_constant__ MergeParams p) {
    const i64 i = static_cast<i64>(blockIdx.x) * SMALL + threadIdx.x;
    if (i >= p.all) return;
    const float4 *from = p.parts + i / p.channels * p.count * p.channels + i % p.channels;
    by_channel::Union all;
#pragma unroll 8
    for (int part = 0; part < p.count; part++)
        all.add(by_channel::rows_of(part, p.rows_of_part, p.rows), from[static_cast<size_t>(part) * p.channels]);
    p.out[i] = make_float2(static_cast<float>(all.mean()), static_cast<float>(all.m2()));
}

#elif PASS_COEFFICIENTS
static_assert(sizeof(CoefficientsParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(SMALL)
    group_norm_coefficients(const __grid_constant__ CoefficientsParams p) {
    __shared__ double shared[SMALL / 32];
    const int each = p.channels / p.groups, group = blockIdx.x % p.groups, first = group * each;
    const i64 sample = blockIdx.x / p.groups;
    const int parts = max(p.source[0].parts, p.source[1].parts);
    by_channel::Union all;
    for (int i = threadIdx.x; i < each * parts; i += SMALL) {
        const int part = i / each, channel = first + i % each;
        const bool second = channel >= p.source[0].channels;
        const Source &s = p.source[second];
        if (part >= s.parts) continue;
        const int own = second ? channel - p.source[0].channels : channel;
        all.add(by_channel::rows_of(part, s.rows_of_part, s.rows), s.stats[(sample * s.parts + part) * s.channels + own]);
    }
    all.count = by_channel::block_sum<SMALL>(all.count, shared);
    all.sum = by_channel::block_sum<SMALL>(all.sum, shared);
    all.squares = by_channel::block_sum<SMALL>(all.squares, shared);
    const by_channel::Split mean(all.mean());
    const float r = static_cast<float>(1.0 / sqrt(all.m2() / all.count + static_cast<double>(p.eps)));
    if (p.moments && threadIdx.x == 0) p.moments[blockIdx.x] = make_float4(mean.high, mean.low, r, 0.0f);
    float *const to = p.affine + sample * 3 * p.channels;
    for (int channel = first + threadIdx.x; channel < first + each; channel += SMALL) {
        double scale = 1.0, shift = 0.0;
        if (p.scale_shift) {
            const float *s = p.scale_shift + sample * 2 * p.channels;
            scale += s[channel], shift = s[p.channels + channel];
        }
        const double slope = r * (p.w[channel] * scale);
        to[channel] = mean.high;
        to[p.channels + channel] = static_cast<float>(slope);
        to[2 * p.channels + channel] = static_cast<float>(p.b[channel] * scale + shift - mean.low * slope);
    }
}

#elif PASS_APPLY
static_assert(sizeof(ApplyParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(by_channel::THREADS, POOL ? 3 : 4)
    group_norm_apply(const __grid_constant__ ApplyParams p) {
    using namespace by_channel;
    const Place at(p.cover);
    Coefficients<3> affine;
    affine.load(p.cover, at, p.affine + at.sample * 3 * p.cover.channels);
    if (!at.here) return;
    const bool second = at.channel >= p.split;
    const int pixel = second ? p.cover.channels - p.split : p.split;
    constexpr int TAPS = POOL ? 4 : 1;
    const T *const x = p.x[second] + at.sample * TAPS * p.cover.rows * pixel + (second ? at.channel - p.split : at.channel);
    T *y = p.y + (at.sample * p.cover.rows + at.begin + at.slot) * p.cover.channels + at.channel;
#pragma unroll(POOL ? 1 : 4)
    for (int row = at.begin + at.slot; row < at.end; row += p.cover.slots) {
        // The pixels that are averaged: two below one another, and their neighbours.
        const i64 from = POOL ? 2 * (static_cast<i64>(row / p.width) * 2 * p.width + row % p.width) : row;
        float v[TAPS][V], sum[V] = {};
#pragma unroll
        for (int t = 0; t < TAPS; t++) read(v[t], x + (from + t / 2 * 2 * p.width + t % 2) * pixel);
#pragma unroll
        for (int t = 0; t < TAPS; t++)
#pragma unroll
            for (int k = 0; k < V; k++)
                sum[k] += follow<FOLLOW>(fmaf(v[t][k] - affine.row[HIGH][k], affine.row[SLOPE][k], affine.row[OFFSET][k]));
        if (POOL) {
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] *= 0.25f;
        }
        write(y, sum);
        y += static_cast<size_t>(p.cover.slots) * p.cover.channels;
    }
}

#elif PASS_BWD_SUMS
static_assert(sizeof(SumsParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(by_channel::THREADS, 2) group_norm_bwd_sums(const __grid_constant__ SumsParams p) {
    by_channel::gradient_sums<FOLLOW>(p.cover, p.x, p.gy, nullptr, nullptr, p.affine, p.out);
}

#elif PASS_BWD_COEFFICIENTS
static_assert(sizeof(BackwardCoefficientsParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(SMALL)
    group_norm_bwd_coefficients(const __grid_constant__ BackwardCoefficientsParams p) {
    __shared__ double shared[SMALL / 32];
    const int each = p.channels / p.groups, group = blockIdx.x % p.groups, first = group * each;
    const i64 sample = blockIdx.x / p.groups;
    const float4 m = p.moments[blockIdx.x];
    const double low = m.y, r = m.z;
    const float *const modulation = p.scale_shift ? p.scale_shift + sample * 2 * p.channels : nullptr;
    double with_one = 0.0, with_x = 0.0;
    for (int channel = first + threadIdx.x; channel < first + each; channel += SMALL) {
        double a = 0.0, b = 0.0;
#pragma unroll 4
        for (int part = 0; part < p.parts; part++) {
            const float2 s = p.sums[(sample * p.parts + part) * p.channels + channel];
            a += s.x, b += s.y;
        }
        b = r * (b - low * a);
        const double u = p.w[channel] * (modulation ? 1.0 + modulation[channel] : 1.0);
        with_one += u * a, with_x += u * b;
        p.totals[sample * p.channels + channel] = make_float2(static_cast<float>(a), static_cast<float>(b));
        if (p.scale_shift_gradient) {
            float *const to = p.scale_shift_gradient + sample * 2 * p.channels + channel;
            to[0] = static_cast<float>(p.w[channel] * b + p.b[channel] * a);
            to[p.channels] = static_cast<float>(a);
        }
    }
    const double count = static_cast<double>(p.rows) * each;
    with_one = by_channel::block_sum<SMALL>(with_one, shared) / count;
    with_x = by_channel::block_sum<SMALL>(with_x, shared) / count;
    const double tilt = r * r * with_x;
    float *const to = p.tangent + sample * 3 * p.channels;
    for (int channel = first + threadIdx.x; channel < first + each; channel += SMALL) {
        const double u = p.w[channel] * (modulation ? 1.0 + modulation[channel] : 1.0);
        to[channel] = static_cast<float>(r * u);
        to[p.channels + channel] = static_cast<float>(tilt);
        to[2 * p.channels + channel] = static_cast<float>(low * tilt - r * with_one);
    }
}

#elif PASS_BWD_AFFINE
static_assert(sizeof(AffineParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(SMALL) group_norm_bwd_affine(const __grid_constant__ AffineParams p) {
    const int channel = blockIdx.x * SMALL + threadIdx.x;
    if (channel >= p.channels) return;
    double a = 0.0, b = 0.0;
#pragma unroll 4
    for (i64 sample = 0; sample < p.samples; sample++) {
        const double scale = p.scale_shift ? 1.0 + p.scale_shift[sample * 2 * p.channels + channel] : 1.0;
        const float2 total = p.totals[sample * p.channels + channel];
        a += scale * total.x, b += scale * total.y;
    }
    p.gw[channel] = static_cast<float>(b);
    p.gb[channel] = static_cast<float>(a);
}

#elif PASS_BWD_APPLY
static_assert(sizeof(MapParams) == PARAMS_BYTES, "as in Rust");
extern "C" __global__ void __launch_bounds__(by_channel::THREADS, 2) group_norm_bwd_apply(const __grid_constant__ MapParams p) {
    by_channel::gradient_map<FOLLOW>(p.cover, p.x, p.gy, p.affine, p.tangent, p.gx);
}
#endif
