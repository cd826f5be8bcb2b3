// Whitened mean squared error, attention transfer and cosine of pairs of feature maps, all levels in one launch.
//
// Forward, one pass over the maps, and two small ones over what it leaves:
//
//     blocks    runs of pixels of one image of one level:   power sums of every pixel, moments of the run
//     samples   a block for every image of every level:     moments -> MSE, cosine, mean and 1/sd of the teacher;
//                                                           power sums -> distance, and its slope at every pixel
//     total     one block:                                  images in order -> levels -> the loss
//
// Backward, one pass: gs = k (s - (t - mean) factor) + k' slope[pixel] d|s|^p/ds.
//
// A pixel belongs to `lanes` threads that stand together in a warp, chunk by chunk:
//
//     pixel  | 0  1  2 .. lanes-1 | 0  1  2 .. lanes-1 | ..      channels, 16 bytes a thread
//     warp   | pixel i | pixel i+1 | ..                          32 / lanes pixels at a time
//
// Moments are about a running mean (of a thread) of what was seen before, which itself is kept relative to one element of
// the group: neither a large mean nor a long sum costs digits. With whitening over channels a group is a pixel, and a run
// leaves sums of (s - w)^2, s w, s^2, w^2 instead.
#pragma once
#include "tile/ordered_sum.cuh"
#include "tile/pair_moments.cuh"
#include "tile/piece.cuh"

namespace feature_loss {

constexpr int THREADS = 256, WARPS = THREADS / 32;
// As in Rust: `feature_loss::MAX_LEVELS`, `feature_loss::cuda::MAX_RUN`.
constexpr int MAX_LEVELS = 16, MAX_RUN = 512;
// Numbers that a run leaves: 32 bytes.
constexpr int PARTS = 8;
// What the teacher is whitened over, and how attention maps are compared; as in Rust.
constexpr int WHITEN_NONE = 0, WHITEN_CHANNEL = 2;
constexpr int DISTANCE_L2 = 0;
// Lower bounds of the norm that a map is divided by, and of the norms that a cosine is divided by.
constexpr double MIN_NORM = 1e-12;

// As in Rust: `feature_loss::cuda::Level`.
struct Level {
    const T *s, *t; // [images, pixels, channels], [images, pixels, teacher_channels]
    T *gs;
    i64 first_pixel; // of what is known of pixels
    i64 first_group; // of what is known of groups that share a mean
    int pixels;      // of an image
    int channels, teacher_channels;
    int lanes;       // of a pixel
    int run, runs;   // pixels of a block, blocks of an image
    int first_block;
    int pad;
};

// As in Rust: `feature_loss::cuda::Params`.
struct Params {
    float *parts;            // [blocks, PARTS]
    float *student, *teacher; // power sums [pixels of all levels]
    float *slopes;           // of the distance with respect to the student's power sums [pixels of all levels]
    float2 *whitening;       // mean and factor [groups of all levels]
    float *results;          // MSE, distance, cosine [levels, images, 4]
    float *y, *levels_out;   // the loss; the means over images [levels, 3]
    const float *gy;
    int levels, images, whiten, distance;
    float eps, p, mse_weight, at_weight;
    Level level[MAX_LEVELS];
};

static __device__ __forceinline__ int level_of(const Params &p, int block) {
    int l = 0;
    while (l + 1 < p.levels && block >= p.level[l + 1].first_block) l++;
    return l;
}

// |v|^p. EXPONENT: 2, or 0 for the exponent p.
template <int EXPONENT> static __device__ __forceinline__ float power(float v, float p) {
    if constexpr (EXPONENT == 2) return v * v;
    const float a = fabsf(v);
    return p == 1.0f ? a : exp2f(p * log2f(a));
}

// d|v|^p / dv over p.
template <int EXPONENT> static __device__ __forceinline__ float slope(float v, float p) {
    if constexpr (EXPONENT == 2) return v;
    if (v == 0.0f) return 0.0f;
    return copysignf(p == 1.0f ? 1.0f : exp2f((p - 1.0f) * log2f(fabsf(v))), v);
}

// What one thread has seen of its pixels. Means are relative to `base_s` and `base_t`.
struct Running {
    PairMoments<float> all;
    float base_s, base_t;
    float shift_s, shift_t;      // of the pixel
    float s, t, ss, tt, st;      // sums over the pixel, shifted

    __device__ __forceinline__ void start(float s, float t) {
        all = PairMoments<float>{0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        base_s = s, base_t = t;
    }
    __device__ __forceinline__ void begin_pixel() {
        shift_s = base_s + all.s, shift_t = base_t + all.t;
        s = t = ss = tt = st = 0.0f;
    }
    __device__ __forceinline__ void add(float x, float y) {
        const float dx = x - shift_s, dy = y - shift_t;
        s += dx, t += dy;
        ss = fmaf(dx, dx, ss), tt = fmaf(dy, dy, tt), st = fmaf(dx, dy, st);
    }
    // `count` numbers were added; `by` is its inverse.
    __device__ __forceinline__ void end_pixel(float count, float by) {
        const float ms = s * by, mt = t * by;
        all.merge(PairMoments<float>{count, shift_s - base_s + ms, shift_t - base_t + mt, fmaf(-s, ms, ss),
                                     fmaf(-t, mt, tt), fmaf(-s, mt, st)});
    }
};

static __device__ __forceinline__ float inverse_root(float v) { return rsqrtf(v); }
static __device__ __forceinline__ double inverse_root(double v) { return 1.0 / sqrt(v); }

// Sums over a group of n pairs about whose teacher's mean and deviation is known: (s - w)^2, s w, s^2, w^2, where
// w = (t - mean) factor; `mean` and `factor` are set. Means of `m` are relative to the bases.
template <typename R>
static __device__ __forceinline__ void whiten(const PairMoments<R> &m, R base_s, R base_t, int whitening, R eps, R (&sums)[4],
                                              R &mean, R &factor) {
    const R s = base_s + m.s, t = base_t + m.t;
    if (whitening == WHITEN_NONE) {
        const R d = s - t;
        mean = R(0), factor = R(1);
        sums[0] = (m.ss - m.st) + (m.tt - m.st) + m.count * d * d;
        sums[1] = m.st + m.count * s * t;
        sums[2] = m.ss + m.count * s * s;
        sums[3] = m.tt + m.count * t * t;
    } else {
        mean = t, factor = inverse_root(share_of(m.tt, m.count) + eps);
        const R st = factor * m.st, tt = factor * factor * m.tt;
        sums[0] = (m.ss - st) + (tt - st) + m.count * s * s;
        sums[1] = st;
        sums[2] = m.ss + m.count * s * s;
        sums[3] = tt;
    }
    // Rounding; a NaN stays.
    if (sums[0] < R(0)) sums[0] = R(0);
}

// The pass over the maps. MOMENTS: for MSE and cosine (as many channels of student and teacher). ENERGY: for attention
// transfer. BY_PIXEL: a pixel's channels share a mean.
template <bool WIDE, bool MOMENTS, bool ENERGY, bool BY_PIXEL, int EXPONENT>
static __device__ __forceinline__ void blocks(const Params &p) {
    typedef Piece<WIDE> V;
    __shared__ __align__(16) float energy[2][ENERGY ? MAX_RUN : 4];
    __shared__ __align__(16) float2 whitening[BY_PIXEL ? MAX_RUN : 2];
    __shared__ float board[MOMENTS ? WARPS : 1][PARTS];

    const Level &level = p.level[level_of(p, blockIdx.x)];
    const int block = blockIdx.x - level.first_block, image = block / level.runs;
    const int begin = block % level.runs * level.run, count = min(level.run, level.pixels - begin);
    const int lanes = level.lanes, lane = threadIdx.x & (lanes - 1), first = threadIdx.x / lanes, step = THREADS / lanes;
    const int channels = level.channels, stride = lanes * V::SIZE;
    const i64 origin = static_cast<i64>(image) * level.pixels;
    // Channels of a pixel that are this thread's, if it has any.
    const float mine = static_cast<float>((channels - lane * V::SIZE + stride - 1) / stride * V::SIZE), by_mine = __fdividef(1.0f, mine);

    Running running;
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if constexpr (MOMENTS && !BY_PIXEL) {
        V s, t;
        s.load(level.s + origin * channels), t.load(level.t + origin * channels);
        running.start(s.v[0], t.v[0]);
    }
    for (int i = first; i - first < count; i += step) {
        const bool there = i < count;
        const T *from = level.s + (origin + begin + i) * channels;
        const T *of = level.t + (origin + begin + i) * level.teacher_channels;
        float es = 0.0f, et = 0.0f;
        const int c = lane * V::SIZE;
        if constexpr (MOMENTS) {
            if constexpr (BY_PIXEL) {
                V s, t;
                if (there) s.load(from), t.load(of);
                running.start(s.v[0], t.v[0]);
            }
            running.begin_pixel();
            if (there) {
#pragma unroll (BY_PIXEL ? 1 : 2)
                for (int j = c; j < channels; j += stride) {
                    V s, t;
                    s.load(from + j), t.load(of + j);
#pragma unroll
                    for (int k = 0; k < V::SIZE; k++) {
                        running.add(s.v[k], t.v[k]);
                        if constexpr (ENERGY) es += power<EXPONENT>(s.v[k], p.p), et += power<EXPONENT>(t.v[k], p.p);
                    }
                }
                if (c < channels) running.end_pixel(mine, by_mine);
            }
        } else if (there) {
            for (int j = c; j < channels; j += stride) {
                V s;
                s.load(from + j);
#pragma unroll
                for (int k = 0; k < V::SIZE; k++) es += power<EXPONENT>(s.v[k], p.p);
            }
            for (int j = c; j < level.teacher_channels; j += stride) {
                V t;
                t.load(of + j);
#pragma unroll
                for (int k = 0; k < V::SIZE; k++) et += power<EXPONENT>(t.v[k], p.p);
            }
        }
        if constexpr (ENERGY) {
            es = sum_lanes(es, lanes), et = sum_lanes(et, lanes);
            if (there && lane == 0) energy[0][i] = es, energy[1][i] = et;
        }
        if constexpr (BY_PIXEL) {
            merge_lanes(running.all, lanes);
            if (there && lane == 0) {
                float of_pixel[4], mean, factor;
                whiten(running.all, running.base_s, running.base_t, p.whiten, p.eps, of_pixel, mean, factor);
#pragma unroll
                for (int k = 0; k < 4; k++) sums[k] += of_pixel[k];
                whitening[i] = make_float2(mean, factor);
            }
        }
    }

    if constexpr (MOMENTS) {
        const int warp = threadIdx.x / 32;
        if constexpr (BY_PIXEL) {
#pragma unroll
            for (int k = 0; k < 4; k++) sums[k] = sum_lanes(sums[k], 32);
            if (threadIdx.x % 32 == 0) {
#pragma unroll
                for (int k = 0; k < 4; k++) board[warp][k] = sums[k];
            }
        } else {
            merge_lanes(running.all, 32);
            if (threadIdx.x % 32 == 0) {
                const PairMoments<float> &m = running.all;
                float *to = board[warp];
                to[0] = m.count, to[1] = m.s, to[2] = m.t, to[3] = m.ss, to[4] = m.tt, to[5] = m.st;
            }
        }
    }
    __syncthreads();
    if (MOMENTS && threadIdx.x == 0) {
        float low[4] = {0.0f, 0.0f, 0.0f, 0.0f}, high[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if constexpr (BY_PIXEL) {
            for (int w = 0; w < WARPS; w++)
#pragma unroll
                for (int k = 0; k < 4; k++) low[k] += board[w][k];
        } else {
            PairMoments<float> m = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
            for (int w = 0; w < WARPS; w++) {
                const float *b = board[w];
                m.merge(PairMoments<float>{b[0], b[1], b[2], b[3], b[4], b[5]});
            }
            low[0] = m.count, low[1] = m.s, low[2] = m.t, low[3] = m.ss;
            high[0] = m.tt, high[1] = m.st, high[2] = running.base_s, high[3] = running.base_t;
        }
        float *to = p.parts + static_cast<i64>(blockIdx.x) * PARTS;
        store_chunk(to, low), store_chunk(to + 4, high);
    }
    const i64 pixel = level.first_pixel + origin + begin;
    const bool fours = level.pixels % 4 == 0;
    if constexpr (ENERGY) {
        for (int i = threadIdx.x * (fours ? 4 : 1); i < count; i += THREADS * (fours ? 4 : 1)) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float *to = (k == 0 ? p.student : p.teacher) + pixel + i;
                if (fours)
                    *reinterpret_cast<float4 *>(to) = *reinterpret_cast<const float4 *>(&energy[k][i]);
                else
                    *to = energy[k][i];
            }
        }
    }
    if constexpr (BY_PIXEL) {
        float2 *to = p.whitening + level.first_group + origin + begin;
        for (int i = threadIdx.x * (fours ? 2 : 1); i < count; i += THREADS * (fours ? 2 : 1)) {
            if (fours)
                *reinterpret_cast<float4 *>(to + i) = *reinterpret_cast<const float4 *>(&whitening[i]);
            else
                to[i] = whitening[i];
        }
    }
}

// MSE and cosine of an image, and what its teacher is whitened with, from what its runs left.
template <bool BY_PIXEL>
static __device__ __forceinline__ void finish_moments(const Params &p, const Level &level, int image, double (&board)[6][THREADS],
                                                      float &mse, float &cosine) {
    const float *parts = p.parts + (level.first_block + static_cast<i64>(image) * level.runs) * PARTS;
    double sums[4];
    if constexpr (BY_PIXEL) {
        double v[6] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
        for (int r = threadIdx.x; r < level.runs; r += THREADS) {
            float low[4];
            load_chunk(low, parts + static_cast<i64>(r) * PARTS);
#pragma unroll
            for (int k = 0; k < 4; k++) v[k] += low[k];
        }
        sum_block(v, board);
#pragma unroll
        for (int k = 0; k < 4; k++) sums[k] = v[k];
    } else {
        PairMoments<double> m = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
        float bases[4];
        load_chunk(bases, parts + 4);
        for (int r = threadIdx.x; r < level.runs; r += THREADS) {
            float low[4], high[4];
            load_chunk(low, parts + static_cast<i64>(r) * PARTS), load_chunk(high, parts + static_cast<i64>(r) * PARTS + 4);
            m.merge(PairMoments<double>{low[0], low[1], low[2], low[3], high[0], high[1]});
        }
        __syncthreads();
        const int i = threadIdx.x;
        board[0][i] = m.count, board[1][i] = m.s, board[2][i] = m.t, board[3][i] = m.ss, board[4][i] = m.tt, board[5][i] = m.st;
        __syncthreads();
        for (int half = THREADS / 2; half > 0; half >>= 1) {
            if (i < half) {
                const int j = i + half;
                m.merge(PairMoments<double>{board[0][j], board[1][j], board[2][j], board[3][j], board[4][j], board[5][j]});
                board[0][i] = m.count, board[1][i] = m.s, board[2][i] = m.t;
                board[3][i] = m.ss, board[4][i] = m.tt, board[5][i] = m.st;
            }
            __syncthreads();
        }
        if (i != 0) return;
        double mean, factor;
        whiten(m, static_cast<double>(bases[2]), static_cast<double>(bases[3]), p.whiten, static_cast<double>(p.eps), sums, mean,
               factor);
        if (p.whitening)
            p.whitening[level.first_group + image] = make_float2(static_cast<float>(mean), static_cast<float>(factor));
    }
    const double norms = sqrt(sums[2] * sums[3]);
    mse = static_cast<float>(sums[0] / (static_cast<double>(level.pixels) * level.channels));
    cosine = static_cast<float>(sums[1] / (norms < MIN_NORM ? MIN_NORM : norms));
}

// Distance of the maps of an image, and its slopes.
static __device__ __forceinline__ float finish_energy(const Params &p, const Level &level, int image, double (&board)[2][THREADS]) {
    const i64 first = level.first_pixel + static_cast<i64>(image) * level.pixels;
    const float *student = p.student + first, *teacher = p.teacher + first;
    double v[2] = {0.0, 0.0};
    for (int i = threadIdx.x; i < level.pixels; i += THREADS) {
        const double s = student[i], t = teacher[i];
        v[0] += s * s, v[1] += t * t;
    }
    sum_block(v, board);
    const double norm = sqrt(v[0]), norm_t = sqrt(v[1]);
    const double by = 1.0 / (norm < MIN_NORM ? MIN_NORM : norm), by_t = 1.0 / (norm_t < MIN_NORM ? MIN_NORM : norm_t);
    v[0] = v[1] = 0.0;
    for (int i = threadIdx.x; i < level.pixels; i += THREADS) {
        const double s = student[i] * by, d = s - teacher[i] * by_t;
        v[0] += d * d, v[1] += d * s;
    }
    sum_block(v, board);
    // Below the bound the norm is a constant.
    const double along = norm > MIN_NORM ? v[1] : 0.0;
    double distance = v[0], scale;
    if (p.distance == DISTANCE_L2) {
        distance = sqrt(distance);
        scale = distance == 0.0 ? 0.0 : by / (p.images * distance);
    } else {
        distance /= level.pixels;
        scale = 2.0 * by / (static_cast<double>(p.images) * level.pixels);
    }
    for (int i = threadIdx.x; i < level.pixels; i += THREADS) {
        const double s = student[i] * by, d = s - teacher[i] * by_t;
        p.slopes[first + i] = static_cast<float>(scale * (d - s * along));
    }
    return static_cast<float>(distance);
}

// Grid: images of level 0, images of level 1, ..
template <bool MOMENTS, bool ENERGY, bool BY_PIXEL> static __device__ __forceinline__ void samples(const Params &p) {
    __shared__ double moments[MOMENTS ? 6 : 1][THREADS];
    __shared__ double energy[2][THREADS];
    const int image = blockIdx.x % p.images;
    const Level &level = p.level[blockIdx.x / p.images];
    float result[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if constexpr (ENERGY) result[1] = finish_energy(p, level, image, energy);
    if constexpr (MOMENTS) finish_moments<BY_PIXEL>(p, level, image, moments, result[0], result[2]);
    if (threadIdx.x == 0) store_chunk(p.results + static_cast<i64>(blockIdx.x) * 4, result);
}

// One block. A term of weight 0 is reported as 0, as it would be had nobody computed it.
static __device__ __forceinline__ void total(const Params &p) {
    __shared__ double board[3][THREADS];
    double loss = 0.0;
    for (int l = 0; l < p.levels; l++) {
        double v[3] = {0.0, 0.0, 0.0};
        for (int i = threadIdx.x; i < p.images; i += THREADS) {
            float r[4];
            load_chunk(r, p.results + (static_cast<i64>(l) * p.images + i) * 4);
#pragma unroll
            for (int k = 0; k < 3; k++) v[k] += r[k];
        }
        sum_block(v, board);
        const double mse = p.mse_weight > 0.0f ? v[0] / p.images : 0.0, at = p.at_weight > 0.0f ? v[1] / p.images : 0.0;
        if (p.mse_weight > 0.0f) loss += p.mse_weight * mse;
        if (p.at_weight > 0.0f) loss += p.at_weight * at;
        if (threadIdx.x == 0 && p.levels_out) {
            p.levels_out[3 * l] = static_cast<float>(mse);
            p.levels_out[3 * l + 1] = static_cast<float>(at);
            p.levels_out[3 * l + 2] = static_cast<float>(v[2] / p.images);
        }
    }
    if (threadIdx.x == 0) *p.y = static_cast<float>(loss / p.levels);
}

// Writes gs. The grid and the places of pixels are those of `blocks`.
template <bool WIDE, int EXPONENT> static __device__ __forceinline__ void backward(const Params &p) {
    typedef Piece<WIDE> V;
    const Level &level = p.level[level_of(p, blockIdx.x)];
    const int block = blockIdx.x - level.first_block, image = block / level.runs;
    const int begin = block % level.runs * level.run, count = min(level.run, level.pixels - begin);
    const int lanes = level.lanes, lane = threadIdx.x & (lanes - 1), step = THREADS / lanes;
    const i64 origin = static_cast<i64>(image) * level.pixels + begin;
    const bool mse = p.mse_weight > 0.0f, at = p.at_weight > 0.0f, per_pixel = p.whiten == WHITEN_CHANNEL;
    const float gy = *p.gy / static_cast<float>(p.levels);
    const float elements = static_cast<float>(p.images) * static_cast<float>(level.pixels) * static_cast<float>(level.channels);
    const float k_mse = gy * p.mse_weight * (2.0f / elements), k_at = gy * p.at_weight * p.p;
    float2 white = make_float2(0.0f, 1.0f);
    if (!per_pixel && p.whitening) white = p.whitening[level.first_group + image];
    for (int i = threadIdx.x / lanes; i < count; i += step) {
        const i64 pixel = origin + i;
        const float k = at ? k_at * p.slopes[level.first_pixel + pixel] : 0.0f;
        if (mse && per_pixel) white = p.whitening[level.first_group + pixel];
        const T *from = level.s + pixel * level.channels, *of = level.t + pixel * level.channels;
        T *to = level.gs + pixel * level.channels;
        for (int c = lane * V::SIZE; c < level.channels; c += lanes * V::SIZE) {
            V s, t;
            s.load(from + c);
            if (mse) t.load(of + c);
#pragma unroll
            for (int j = 0; j < V::SIZE; j++) {
                float v = 0.0f;
                if (mse) v = k_mse * (s.v[j] - (t.v[j] - white.x) * white.y);
                if (at) v = fmaf(k, slope<EXPONENT>(s.v[j], p.p), v);
                s.v[j] = v;
            }
            s.store(to + c);
        }
    }
}

} // namespace feature_loss
