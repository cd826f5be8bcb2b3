// What becomes of a sum: bias, scale, residual, activation, rounding; and the statistics that the next norm wants.
//
//     v = activation(scale[c] * (sum + bias[c]) + residual[pixel, c])         every part optional
//     y[pixel, c] = round(v)                                                  16 bytes at a time where channels allow it
//
// Statistics are mean and sum of squared deviations of what was written, merged pairwise (Chan, Golub and LeVeque 1983),
// always in the same order, and never as E[x^2] - E[x]^2.
#pragma once
#include "tile/types.cuh"

// As in Rust: `implicit_gemm::params::Epilogue`.
struct Epilogue {
    T *y;
    const float *bias;
    const float *scale;
    const T *residual;
    float2 *stats;
    float *partial;
    int channels;       // of y, and of residual
    int activation;     // 0 none, 1 ReLU, 2 SiLU, 3 GELU
    int residual_shift; // 1: the residual has half of y's height and width and is read as its nearest-neighbour doubling
    int pad;
};

static __device__ __forceinline__ float activate(float v, int activation) {
    if (activation == 1) return fmaxf(v, 0.0f);
    if (activation == 2) return v / (1.0f + __expf(-v));
    if (activation == 3) return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
    return v;
}

// Count, mean and sum of squared deviations of some numbers.
struct Moments {
    float count, mean, m2;

    __device__ __forceinline__ void merge(float n, float m, float s) {
        const float all = count + n;
        if (all > 0.0f) {
            const float d = m - mean, part = n / all;
            mean += d * part;
            m2 += s + d * d * count * part;
            count = all;
        }
    }
};

// Bias and scale of E channels from `channel` on, of which `there` exist; all of them, and 16 bytes apart, where `whole`.
template <int E> struct ChannelVectors {
    float bias[E], scale[E];

    __device__ __forceinline__ ChannelVectors(const Epilogue &e, int channel, int there, bool whole) {
        load(bias, e.bias, 0.0f, channel, there, whole);
        load(scale, e.scale, 1.0f, channel, there, whole);
    }

    static __device__ __forceinline__ void load(float (&v)[E], const float *from, float otherwise, int channel, int there,
                                                bool whole) {
#pragma unroll
        for (int i = 0; i < E; i++) v[i] = otherwise;
        if (!from) return;
        if (whole && (reinterpret_cast<u64>(from) & 15) == 0) {
#pragma unroll
            for (int i = 0; i < E; i += 4) {
                float four[4];
                load_chunk(four, from + channel + i);
#pragma unroll
                for (int k = 0; k < 4; k++) v[i + k] = four[k];
            }
        } else {
#pragma unroll
            for (int i = 0; i < E; i++)
                if (i < there) v[i] = from[channel + i];
        }
    }
};

// Finishes E sums of row `at` of y: adds what is to be added, rounds and writes them. `from` is the residual's row; `there`
// of the channels exist, all of them and 16 bytes apart where `whole`. `v` becomes what was written.
template <int E>
static __device__ __forceinline__ void write_chunk(float (&v)[E], const Epilogue &e, const ChannelVectors<E> &vectors,
                                                   i64 at, i64 from, int channel, int there, bool whole) {
    float residual[E];
#pragma unroll
    for (int i = 0; i < E; i++) residual[i] = 0.0f;
    if (e.residual) {
        const T *r = e.residual + from * e.channels + channel;
        if (whole) {
            load_chunk(residual, r);
        } else {
#pragma unroll
            for (int i = 0; i < E; i++)
                if (i < there) residual[i] = to_float(r[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < E; i++)
        v[i] = activate(fmaf(vectors.scale[i], v[i] + vectors.bias[i], residual[i]), e.activation);
    T *to = e.y + at * e.channels + channel;
    if (whole) {
        store_chunk(to, v);
    } else {
#pragma unroll
        for (int i = 0; i < E; i++)
            if (i < there) to[i] = from_float<T>(v[i]);
    }
#pragma unroll
    for (int i = 0; i < E; i++) v[i] = to_float(from_float<T>(v[i]));
}
