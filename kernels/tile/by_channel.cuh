// Passes over [samples, rows, channels] that norms over pixels share: moments, a map by channel, sums of gradients and the
// map of gradients. A batch norm is one sample; a group norm has a sample for each image.
//
//     grid   -> (sample, part of its rows, run of channels)          the channels fastest
//     block  -> lanes x slots      lane: a chunk of channels (one channel without VEC)
//                                  slot: every slots-th row of the part
//                channels ->
//         rows |  slot 0: lane 0 | lane 1 | ..           a thread keeps its channels: coefficients and sums stay in
//              v  slot 1: ..                             registers, and a row of lanes is contiguous in memory
//
// Sums of a thread are f32 about its own first row, those of a block are merged slot by slot, those of parts in f64 by the
// kernel that finishes: always in the same order.
#pragma once
#include "tile/types.cuh"

#ifndef VEC
#define VEC 1
#endif

namespace by_channel {

constexpr int THREADS = 256;
constexpr int MOST_LANES = 32;
// Channels of a thread, and how many of them lie side by side in shared memory.
constexpr int V = VEC ? Chunk<T>::SIZE : 1;
constexpr int PAIR = VEC ? 2 : 1;
// Rows that a thread has under way.
constexpr int TURN = 4;

// As in Rust: `ops::norm::Cover`.
struct Cover {
    int channels;
    int lanes, slots;
    int blocks; // across the channels
    int parts;  // of the rows of a sample
    int rows, rows_of_part;
    int pad;
};

// What a thread covers.
struct Place {
    int lane, slot, channel, begin, end;
    i64 sample, part; // part: of all samples
    int first;        // channel of the block
    bool here;

    __device__ __forceinline__ explicit Place(const Cover &c) {
        const int block = blockIdx.x % c.blocks, rest = blockIdx.x / c.blocks;
        part = rest;
        sample = rest / c.parts;
        lane = threadIdx.x % c.lanes, slot = threadIdx.x / c.lanes;
        first = block * c.lanes * V;
        channel = first + lane * V;
        begin = rest % c.parts * c.rows_of_part;
        end = min(begin + c.rows_of_part, c.rows);
        here = slot < c.slots && channel < c.channels;
    }
};

// N is V.
template <int N> static __device__ __forceinline__ void read(float (&v)[N], const T *p) {
    if constexpr (N > 1)
        load_chunk(v, p);
    else
        v[0] = to_float(*p);
}

template <int N> static __device__ __forceinline__ void write(T *p, const float (&v)[N]) {
    if constexpr (N > 1)
        store_chunk(p, v);
    else
        *p = from_float<T>(v[0]);
}

// Where channel k of a thread's lies in a row of shared memory, so that neighbours read and write without conflicts.
static __device__ __forceinline__ int shared_column(int lanes, int lane, int k) {
    return (k / PAIR * lanes + lane) * PAIR + k % PAIR;
}

// The channel, counted from the block's first, at a column of shared memory.
static __device__ __forceinline__ int channel_at(int lanes, int column) {
    return column / PAIR % lanes * V + column / PAIR / lanes * PAIR + column % PAIR;
}

// Pairs of numbers of PAIR channels.
static __device__ __forceinline__ void store_pairs(float2 *to, const float2 (&v)[PAIR]) {
    if constexpr (VEC) {
        const float four[4] = {v[0].x, v[0].y, v[PAIR - 1].x, v[PAIR - 1].y};
        store_chunk(reinterpret_cast<float *>(to), four);
    } else {
        *to = v[0];
    }
}

// Moments relative to an origin: adds `there` values (1 .. TURN), which are consumed.
struct Deviations {
    float origin[V], mean[V], m2[V];
    float count;

    __device__ __forceinline__ Deviations() : count(0.0f) {
#pragma unroll
        for (int k = 0; k < V; k++) origin[k] = mean[k] = m2[k] = 0.0f;
    }

    template <bool FULL> __device__ __forceinline__ void add(float (&v)[TURN][V], int there) {
        if (count == 0.0f) {
#pragma unroll
            for (int k = 0; k < V; k++) origin[k] = v[0][k];
        }
        const float n = FULL ? TURN : static_cast<float>(there), all = count + n;
        const float inverse = 1.0f / n, part = n / all, weight = count * part;
#pragma unroll
        for (int k = 0; k < V; k++) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < TURN; i++)
                if (FULL || i < there) sum += v[i][k] -= origin[k];
            const float m = sum * inverse;
            float squares = 0.0f;
#pragma unroll
            for (int i = 0; i < TURN; i++)
                if (FULL || i < there) squares = fmaf(v[i][k] - m, v[i][k] - m, squares);
            const float d = m - mean[k];
            mean[k] = fmaf(d, part, mean[k]);
            m2[k] += fmaf(d * d, weight, squares);
        }
        count = all;
    }
};

// out[sample][part][channel] = (mean, what its rounding leaves of it, sum of squared deviations, 0) of the rows of the part.
static __device__ __forceinline__ void moments(const Cover &c, const T *x, float4 *out) {
    __shared__ __align__(16) float shared[3][THREADS * V];
    const Place at(c);
    const int width = c.lanes * V;
    if (at.here) {
        Deviations all;
        const size_t step = static_cast<size_t>(c.slots) * c.channels;
        const T *p = x + (at.sample * c.rows + at.begin + at.slot) * c.channels + at.channel;
        int row = at.begin + at.slot;
        float v[TURN][V];
        for (; row + (TURN - 1) * c.slots < at.end; row += TURN * c.slots, p += TURN * step) {
#pragma unroll
            for (int i = 0; i < TURN; i++) read(v[i], p + i * step);
            all.add<true>(v, TURN);
        }
        if (row < at.end) {
            const int there = (at.end - row + c.slots - 1) / c.slots;
#pragma unroll
            for (int i = 0; i < TURN; i++)
                if (i < there) read(v[i], p + i * step);
            all.add<false>(v, there);
        }
#pragma unroll
        for (int k = 0; k < V; k++) {
            const int to = at.slot * width + shared_column(c.lanes, at.lane, k);
            shared[0][to] = all.origin[k], shared[1][to] = all.mean[k], shared[2][to] = all.m2[k];
        }
    }
    __syncthreads();
    for (int column = threadIdx.x * PAIR; column < width; column += THREADS * PAIR) {
        const int channel = at.first + channel_at(c.lanes, column);
        if (channel >= c.channels) continue;
#pragma unroll
        for (int k = 0; k < PAIR; k++) {
            const float origin = shared[0][column + k];
            float count = 0.0f, mean = 0.0f, m2 = 0.0f;
            for (int s = 0; s < min(c.slots, at.end - at.begin); s++) {
                const int from = s * width + column + k;
                const float n = static_cast<float>((at.end - at.begin - s + c.slots - 1) / c.slots), all = count + n;
                const float d = shared[0][from] - origin + shared[1][from] - mean, part = n / all;
                mean = fmaf(d, part, mean);
                m2 += fmaf(d * d, count * part, shared[2][from]);
                count = all;
            }
            // The sum and exactly what its rounding loses (Knuth).
            const float high = origin + mean, rounded = high - origin;
            const float low = (origin - (high - rounded)) + (mean - rounded);
            out[at.part * c.channels + channel + k] = make_float4(high, low, m2, 0.0f);
        }
    }
}

// The union of sets of numbers of which count, mean and sum of squared deviations are known. In f64 the difference of squares
// keeps the variance of any f32 numbers whose own rounding leaves one.
struct Union {
    double count, sum, squares;

    __device__ __forceinline__ Union() : count(0.0), sum(0.0), squares(0.0) {}

    __device__ __forceinline__ void add(double n, double mean, float m2) {
        count += n;
        sum += n * mean;
        squares += m2 + n * mean * mean;
    }

    // As `moments` leaves them, and as the epilogue of a convolution does.
    __device__ __forceinline__ void add(double n, float4 m) { add(n, static_cast<double>(m.x) + m.y, m.z); }
    __device__ __forceinline__ void add(double n, float2 m) { add(n, m.x, m.y); }

    __device__ __forceinline__ double mean() const { return sum / count; }

    // Of all deviations from the mean; a NaN stays one.
    __device__ __forceinline__ double m2() const {
        const double v = squares - sum * (sum / count);
        return v < 0.0 ? 0.0 : v;
    }
};

// A number as the sum of two floats: subtracting the first from values near it is exact, the second is a correction.
struct Split {
    float high, low;

    __device__ __forceinline__ explicit Split(double v)
        : high(static_cast<float>(v)), low(static_cast<float>(v - static_cast<double>(high))) {}
};

// Rows of part `part`, of `parts` that cover `rows`.
static __device__ __forceinline__ int rows_of(int part, int rows_of_part, int rows) {
    return min(rows_of_part, rows - part * rows_of_part);
}

// The sum of a number over the threads of the block, in every thread; `shared` has a place for every warp.
template <int BLOCK> static __device__ __forceinline__ double block_sum(double v, double *shared) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0;
#pragma unroll
    for (int w = 0; w < BLOCK / 32; w++) v += shared[w];
    return v;
}

// Rows of coefficients [ROWS, channels] of a sample, for the channels of a thread: through shared memory, so that a block
// reads them once. All threads of the block call it.
template <int ROWS> struct Coefficients {
    float row[ROWS][V];

    __device__ __forceinline__ void load(const Cover &c, const Place &at, const float *from) {
        __shared__ __align__(16) float shared[ROWS][MOST_LANES * V];
        const int width = min(c.lanes * V, c.channels - at.first);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float *p = from + static_cast<size_t>(r) * c.channels + at.first;
            if constexpr (VEC) {
                for (int i = threadIdx.x * 4; i < width; i += THREADS * 4) {
                    float four[4];
                    load_chunk(four, p + i);
                    *reinterpret_cast<float4 *>(&shared[r][i]) = make_float4(four[0], four[1], four[2], four[3]);
                }
            } else {
                for (int i = threadIdx.x; i < width; i += THREADS) shared[r][i] = p[i];
            }
        }
        __syncthreads();
        if (!at.here) return;
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int k = 0; k < V; k++) row[r][k] = shared[r][at.lane * V + k];
    }
};

// What follows the affine map.
enum Follow { NOTHING = 0, RELU = 1, SILU = 2, RELU_OF_Y = 3 };

// A NaN stays one.
static __device__ __forceinline__ float relu(float v) { return v < 0.0f ? 0.0f : v; }
static __device__ __forceinline__ float silu(float v) { return __fdividef(v, 1.0f + __expf(-v)); }

template <int F> static __device__ __forceinline__ float follow(float z) {
    if constexpr (F == RELU) return relu(z);
    if constexpr (F == SILU) return silu(z);
    return z;
}

// The gradient before what follows: z is the value there, or for RELU_OF_Y that behind it.
template <int F> static __device__ __forceinline__ float before(float g, float z) {
    if constexpr (F == RELU || F == RELU_OF_Y) return z <= 0.0f ? 0.0f : g;
    if constexpr (F == SILU) {
        const float s = __fdividef(1.0f, 1.0f + __expf(-z));
        return g * (s * fmaf(z, 1.0f - s, 1.0f));
    }
    return g;
}

// Rows of coefficients of z = (x - high) slope + offset.
enum Affine { HIGH = 0, SLOPE = 1, OFFSET = 2 };

// Rows of coefficients of the gradient of x: own gz - (x - high) tilt + rest.
enum Tangent { OWN = 0, TILT = 1, REST = 2 };

// out[sample][part][channel] = (sum of gz, sum of gz (x - high)) over the rows of the part. `y` is read for RELU_OF_Y, and gz is
// written where it is wanted.
template <int F>
static __device__ __forceinline__ void gradient_sums(const Cover &c, const T *x, const T *gy, const T *y, T *gz,
                                                     const float *affine, float2 *out) {
    __shared__ __align__(16) float shared[2][THREADS * V];
    const Place at(c);
    Coefficients<3> forward;
    forward.load(c, at, affine + at.sample * 3 * c.channels);
    const int width = c.lanes * V;
    if (at.here) {
        float sum[V] = {}, product[V] = {};
        const size_t step = static_cast<size_t>(c.slots) * c.channels;
        size_t from = (at.sample * c.rows + at.begin + at.slot) * c.channels + at.channel;
#pragma unroll 2
        for (int row = at.begin + at.slot; row < at.end; row += c.slots, from += step) {
            float v[V], g[V];
            read(v, x + from);
            read(g, gy + from);
            if constexpr (F == RELU_OF_Y) {
                float behind[V];
                read(behind, y + from);
#pragma unroll
                for (int k = 0; k < V; k++) g[k] = before<F>(g[k], behind[k]);
            } else {
#pragma unroll
                for (int k = 0; k < V; k++)
                    g[k] = before<F>(
                        g[k], fmaf(v[k] - forward.row[HIGH][k], forward.row[SLOPE][k], forward.row[OFFSET][k]));
            }
            if (gz) write(gz + from, g);
#pragma unroll
            for (int k = 0; k < V; k++) {
                sum[k] += g[k];
                product[k] = fmaf(g[k], v[k] - forward.row[HIGH][k], product[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < V; k++) {
            const int to = at.slot * width + shared_column(c.lanes, at.lane, k);
            shared[0][to] = sum[k], shared[1][to] = product[k];
        }
    }
    __syncthreads();
    for (int column = threadIdx.x * PAIR; column < width; column += THREADS * PAIR) {
        const int channel = at.first + channel_at(c.lanes, column);
        if (channel >= c.channels) continue;
        float2 result[PAIR];
#pragma unroll
        for (int k = 0; k < PAIR; k++) {
            result[k] = make_float2(0.0f, 0.0f);
            for (int s = 0; s < c.slots; s++) {
                result[k].x += shared[0][s * width + column + k];
                result[k].y += shared[1][s * width + column + k];
            }
        }
        store_pairs(out + at.part * c.channels + channel, result);
    }
}

// gx = own gz - (x - high) tilt + rest
template <int F>
static __device__ __forceinline__ void gradient_map(const Cover &c, const T *x, const T *gy, const float *affine,
                                                    const float *tangent, T *gx) {
    const Place at(c);
    Coefficients<3> forward, backward;
    forward.load(c, at, affine + at.sample * 3 * c.channels);
    __syncthreads();
    backward.load(c, at, tangent + at.sample * 3 * c.channels);
    if (!at.here) return;
    const size_t step = static_cast<size_t>(c.slots) * c.channels;
    size_t from = (at.sample * c.rows + at.begin + at.slot) * c.channels + at.channel;
#pragma unroll 2
    for (int row = at.begin + at.slot; row < at.end; row += c.slots, from += step) {
        float v[V], g[V];
        read(v, x + from);
        read(g, gy + from);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float d = v[k] - forward.row[HIGH][k];
            const float gz = before<F>(g[k], fmaf(d, forward.row[SLOPE][k], forward.row[OFFSET][k]));
            g[k] = fmaf(gz, backward.row[OWN][k], fmaf(-d, backward.row[TILT][k], backward.row[REST][k]));
        }
        write(gx + from, g);
    }
}

} // namespace by_channel
