// The training loss of a diffusion network.
//
// Maths: d = prediction - noise;  y = mean of d^2, and with SIGMA of d^2 + w v / ln 2, where l = range (s + 1) / 2 and
//     step > 0   v = (l - 1 + (1 + (gain d)^2) exp(-l)) / 2
//     step = 0   v = -log of the mass of a normal distribution between (gain d -+ half_bin) exp(-l / 2), at least 1e-12
//     g = gy 2 d / elements;  gs = gy w / (ln 2 elements) range / 2 dv/dl, where d counts as a constant
//
// Memory: prediction, its gradient T [N, pixels, C], with SIGMA [N, pixels, 2 C]: noise, then variance; noise and images f32
// [N, pixels, C]; steps i64 [N]; tables f32 [T, 2] of range and gain; parts f64 [N, runs, 2] of d^2 and v; samples f32 [N, 2].
//
//     fwd, bwd  block -> a run of a sample's elements -> thread: every THREADS-th
//     total     one block -> thread: every THREADS-th sample, its runs in order -> tree over threads
//
// Numerics: f32, sums f64, gradients rounded once, `=`. The distribution is its tanh approximation; the difference of two tanh is
// sinh(u - w) / (cosh u cosh w), of which every factor has a logarithm without cancellation. The same bits in every run. A step
// outside the tables makes the loss and its sample's gradient NaN.
//
// Limits (H100, predicted; simulated only): fwd 4 bytes and sizeof(T) an element, with SIGMA 8 and twice sizeof(T); bwd adds what
// it writes: memory, 3.35 TB/s.
#include "tile/ordered_sum.cuh"
#include "tile/types.cuh"

#ifndef SIGMA
#define SIGMA 1
#endif

constexpr int THREADS = 256;
constexpr float INVERSE_LN_2 = 1.44269504f, ROOT_2_PI = 0.797884561f, CUBE = 0.044715f, LOG_LEAST = -27.6310211f;

// As in Rust: `diffusion_loss::cuda::Params`.
struct Params {
    const T *prediction;
    const float *noise, *images;
    const i64 *steps;
    const float *tables;
    T *gradient;
    double *parts;
    float *samples, *y;
    const float *gy;
    int count, size, channels; // samples; elements of the noise of one; channels of it
    int run, runs;             // elements of a block, blocks of a sample
    int rows;                  // of the tables
    float weight, half_bin;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(Params) == PARAMS_BYTES, "the host passes another struct");
#endif

// log(1 / (1 + exp(-y))), and its derivative for that of y.
static __device__ __forceinline__ float2 log_sigmoid(float y, float dy) {
    const float tail = expf(-fabsf(y));
    return make_float2(fminf(y, 0.0f) - log1pf(tail), dy * (y > 0.0f ? tail : 1.0f) / (1.0f + tail));
}

// -log of the mass of a pixel value's bin, and its derivative with respect to l.
static __device__ float2 surprise(float shift, float half_bin, float l, float pixel) {
    const float scale = expf(-0.5f * l), upper = (shift + half_bin) * scale, lower = (shift - half_bin) * scale;
    const float u = ROOT_2_PI * upper * (1.0f + CUBE * upper * upper), w = ROOT_2_PI * lower * (1.0f + CUBE * lower * lower);
    // By l, of which z is exp(-l / 2).
    const float du = -0.5f * ROOT_2_PI * upper * (1.0f + 3.0f * CUBE * upper * upper);
    const float dw = -0.5f * ROOT_2_PI * lower * (1.0f + 3.0f * CUBE * lower * lower);
    float2 log;
    if (pixel < -0.999f) {
        log = log_sigmoid(2.0f * u, 2.0f * du);
    } else if (pixel > 0.999f) {
        log = log_sigmoid(-2.0f * w, -2.0f * dw);
    } else {
        const float width = 2.0f * half_bin * scale, squares = upper * upper + upper * lower + lower * lower;
        const float apart = ROOT_2_PI * width * (1.0f + CUBE * squares);
        const float d_apart = -0.5f * ROOT_2_PI * width * (1.0f + 3.0f * CUBE * squares);
        const float a = fabsf(u), b = fabsf(w);
        log.x = apart - a - b + logf(-expm1f(-2.0f * apart)) - log1pf(expf(-2.0f * a)) - log1pf(expf(-2.0f * b));
        log.y = d_apart / tanhf(apart) - tanhf(u) * du - tanhf(w) * dw;
    }
    return log.x < LOG_LEAST ? make_float2(-LOG_LEAST, 0.0f) : make_float2(-log.x, -log.y);
}

// What a sample's step says.
struct Row {
    float range, gain;
    bool first, there;

    __device__ __forceinline__ void load(const Params &p, int sample) {
        const i64 step = p.steps[sample];
        there = step >= 0 && step < p.rows;
        first = step == 0;
        range = there ? p.tables[2 * step] : __int_as_float(0x7fc00000);
        gain = there ? p.tables[2 * step + 1] : range;
    }
    // The bound of an element in nats, and its derivative with respect to the variance s.
    __device__ __forceinline__ float2 bound(const Params &p, float d, float s, float pixel) const {
        const float l = range * (s + 1.0f) * 0.5f, shift = gain * d;
        float2 v;
        if (first) {
            v = surprise(shift, p.half_bin, l, pixel);
        } else {
            const float ratio = fmaf(shift, shift, 1.0f) * expf(-l);
            v = make_float2(0.5f * (l - 1.0f + ratio), 0.5f * (1.0f - ratio));
        }
        v.y *= 0.5f * range;
        return v;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) diffusion_loss_fwd(const __grid_constant__ Params p) {
    __shared__ double board[2][THREADS];
    const int sample = blockIdx.x / p.runs, begin = blockIdx.x % p.runs * p.run, end = min(begin + p.run, p.size);
    const i64 origin = static_cast<i64>(sample) * p.size;
    double sums[2] = {0.0, 0.0};
#if SIGMA
    Row row;
    row.load(p, sample);
#endif
    for (int i = begin + threadIdx.x; i < end; i += THREADS) {
#if SIGMA
        const T *from = p.prediction + 2 * origin + i / p.channels * 2 * p.channels + i % p.channels;
        const float d = to_float(from[0]) - p.noise[origin + i];
        sums[1] += row.bound(p, d, to_float(from[p.channels]), p.images[origin + i]).x;
#else
        const float d = to_float(p.prediction[origin + i]) - p.noise[origin + i];
#endif
        sums[0] += static_cast<double>(d) * d;
    }
    sum_block(sums, board);
    if (threadIdx.x < 2) p.parts[2 * static_cast<i64>(blockIdx.x) + threadIdx.x] = threadIdx.x == 0 ? sums[0] : sums[1];
}

extern "C" __global__ void __launch_bounds__(THREADS) diffusion_loss_total(const __grid_constant__ Params p) {
    __shared__ double board[1][THREADS];
    double total[1] = {0.0};
    for (int sample = threadIdx.x; sample < p.count; sample += THREADS) {
        const double *from = p.parts + 2 * static_cast<i64>(sample) * p.runs;
        double error = 0.0, bound = 0.0;
        for (int r = 0; r < p.runs; r++) error += from[2 * r], bound += from[2 * r + 1];
        error /= p.size, bound *= static_cast<double>(INVERSE_LN_2) / p.size;
        p.samples[2 * sample] = static_cast<float>(error);
        p.samples[2 * sample + 1] = static_cast<float>(bound);
        total[0] += error + p.weight * bound;
    }
    sum_block(total, board);
    if (threadIdx.x == 0) *p.y = static_cast<float>(total[0] / p.count);
}

extern "C" __global__ void __launch_bounds__(THREADS) diffusion_loss_bwd(const __grid_constant__ Params p) {
    const int sample = blockIdx.x / p.runs, begin = blockIdx.x % p.runs * p.run, end = min(begin + p.run, p.size);
    const i64 origin = static_cast<i64>(sample) * p.size;
    const float scale = *p.gy / (static_cast<float>(p.size) * static_cast<float>(p.count));
#if SIGMA
    Row row;
    row.load(p, sample);
    const float by = row.there ? 2.0f * scale : row.range, of_bound = scale * p.weight * INVERSE_LN_2;
#endif
    for (int i = begin + threadIdx.x; i < end; i += THREADS) {
#if SIGMA
        const i64 at = 2 * origin + i / p.channels * 2 * p.channels + i % p.channels;
        const float d = to_float(p.prediction[at]) - p.noise[origin + i];
        const float s = to_float(p.prediction[at + p.channels]);
        p.gradient[at] = from_float<T>(by * d);
        p.gradient[at + p.channels] = from_float<T>(of_bound * row.bound(p, d, s, p.images[origin + i]).y);
#else
        const float d = to_float(p.prediction[origin + i]) - p.noise[origin + i];
        p.gradient[origin + i] = from_float<T>(2.0f * scale * d);
#endif
    }
}
