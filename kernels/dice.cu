// Dice losses of a segmentation.
//
// Maths: P = sum p, I = sum p r, R = sum r of every class over the pixels of a group, with p = softmax(z), r = onehot(labels);
//     plain       y = mean over groups and classes of 1 - (2 I + e) / (P + R + e)
//     generalized y = mean over groups of 1 - 2 sum w I / sum w (P + R), w = 1 / R^2 (0 for an absent class)
//     gz = gy p (g - sum p g), where g = dy/dP + r dy/dI; 0 in ignored pixels.
//
// Memory: z, gz [N, pixels, K] of T; labels i64 [N, pixels]; parts f32 [N, runs, 3, K] and sums f32 [N, 3, K] of P, I, R;
// slopes f32 [groups, 2, K] of P and I.
//
//     fwd, bwd  block -> a run of pixels of an image -> warp -> 32 / lanes pixels at a time -> lane: pieces of classes
//               pixel  | 0  1  2 .. lanes-1 | 0  1  2 .. lanes-1 | ..      a piece: 16 bytes (one class without VEC)
//     sums      block -> an image: runs in order
//     groups    block -> a group: images in order, classes -> loss and slopes
//     total     one block: groups in order
//
// A lane keeps its first HELD pieces of a pixel in registers between the passes over it; further ones are read again. In the
// forward pass the lanes of a pixel own a row of 3 x slots sums in shared memory, of which each lane touches its own classes.
//
// Numerics: f32 softmax and sums of a run, f64 sums of runs and losses; gz rounded once, `=`. The same bits in every run. A label
// that is no class makes the loss and its pixel's gradient NaN.
//
// Limits (H100, predicted; simulated only): fwd sizeof(T) bytes and about 8 operations a logit, bwd twice sizeof(T) bytes:
// memory, 3.35 TB/s.
#include "tile/label.cuh"
#include "tile/piece.cuh"

#ifndef VEC
#define VEC 1
#endif

constexpr int THREADS = 256, HELD = 4;
constexpr double EPS = 1e-5;

// As in Rust: `dice::cuda::Params`.
struct Params {
    const T *z;
    const i64 *labels;
    T *gz;
    float *parts, *sums, *slopes;
    float2 *losses; // of groups, and 1
    float *y;
    const float *gy;
    i64 ignore;
    int images, pixels, classes;
    int lanes, slots;   // of a pixel; sums of a kind that its lanes own
    int run, runs;      // pixels of a block, blocks of an image
    int groups;         // 1 or the images
    int generalized, has_ignore;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(Params) == PARAMS_BYTES, "the host passes another struct");
#endif

typedef Piece<VEC != 0> V;

template <bool VALUE> struct Is {
    static constexpr bool value = VALUE;
};

// The logits of a pixel, spread over the lanes that stand together.
struct Pixel {
    V held[HELD];
    const T *from;
    int lane, lanes, classes;

    __device__ __forceinline__ int channel(int piece) const { return (piece * lanes + lane) * V::SIZE; }

    // Calls f(piece, logits, whether they are those that are held) for this lane's pieces.
    template <typename F> __device__ __forceinline__ void each(F f) {
#pragma unroll
        for (int j = 0; j < HELD; j++)
            if (channel(j) < classes) f(j, held[j], Is<true>());
        for (int j = HELD; channel(j) < classes; j++) {
            V v;
            v.load(from + channel(j));
            f(j, v, Is<false>());
        }
    }
    __device__ __forceinline__ void load(bool there) {
        if (!there) classes = 0;
#pragma unroll
        for (int j = 0; j < HELD; j++)
            if (channel(j) < classes) held[j].load(from + channel(j));
    }
    // Largest logit, and the inverse of the sum of exponentials.
    __device__ __forceinline__ float2 softmax() {
        float max = -__int_as_float(0x7f800000);
        each([&](int, V &v, auto) {
#pragma unroll
            for (int k = 0; k < V::SIZE; k++) max = fmaxf(max, v.v[k]);
        });
        for (int o = lanes >> 1; o > 0; o >>= 1) max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, o));
        float sum = 0.0f;
        each([&](int, V &v, auto) {
#pragma unroll
            for (int k = 0; k < V::SIZE; k++) sum += __expf(v.v[k] - max);
        });
        return make_float2(max, 1.0f / sum_lanes(sum, lanes));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) dice_fwd(const __grid_constant__ Params p) {
    extern __shared__ float board[]; // [pixels at a time][P, I, R][slots]
    const int lanes = p.lanes, lane = threadIdx.x & (lanes - 1), first = threadIdx.x / lanes, step = blockDim.x / lanes;
    const int image = blockIdx.x / p.runs, begin = blockIdx.x % p.runs * p.run, count = min(p.run, p.pixels - begin);
    const i64 origin = static_cast<i64>(image) * p.pixels + begin;
    for (int i = threadIdx.x; i < step * 3 * p.slots; i += blockDim.x) board[i] = 0.0f;
    __syncthreads();
    float *predicted = board + first * 3 * p.slots, *both = predicted + p.slots, *real = both + p.slots;
    for (int i = first; i - first < count; i += step) {
        LabelKind kind = LABEL_IGNORED;
        i64 label = -1;
        if (i < count) {
            label = p.labels[origin + i];
            kind = kind_of(label, p.classes, p.has_ignore, p.ignore);
        }
        Pixel pixel;
        pixel.from = p.z + (origin + i) * p.classes;
        pixel.lane = lane, pixel.lanes = lanes, pixel.classes = p.classes;
        pixel.load(kind != LABEL_IGNORED);
        const float2 soft = pixel.softmax();
        const float by = kind == LABEL_WRONG ? not_a_number() : soft.y;
        pixel.each([&](int j, V &v, auto) {
#pragma unroll
            for (int k = 0; k < V::SIZE; k++) {
                const float probability = __expf(v.v[k] - soft.x) * by;
                // A lane's classes lie `lanes` apart.
                const int slot = (j * V::SIZE + k) * lanes + lane;
                predicted[slot] += probability;
                if (pixel.channel(j) + k == label) both[slot] += probability, real[slot] += 1.0f;
            }
        });
    }
    __syncthreads();
    float *to = p.parts + static_cast<i64>(blockIdx.x) * 3 * p.classes;
    for (int i = threadIdx.x; i < 3 * p.classes; i += blockDim.x) {
        const int kind = i / p.classes, c = i % p.classes, piece = c / V::SIZE;
        const int slot = (piece / lanes * V::SIZE + c % V::SIZE) * lanes + piece % lanes;
        float sum = 0.0f;
        for (int g = 0; g < step; g++) sum += board[(g * 3 + kind) * p.slots + slot];
        to[i] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) dice_sums(const __grid_constant__ Params p) {
    const int width = 3 * p.classes;
    const float *from = p.parts + static_cast<i64>(blockIdx.x) * p.runs * width;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        double sum = 0.0;
#pragma unroll 4
        for (int r = 0; r < p.runs; r++) sum += from[static_cast<i64>(r) * width + i];
        p.sums[static_cast<i64>(blockIdx.x) * width + i] = static_cast<float>(sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) dice_groups(const __grid_constant__ Params p) {
    __shared__ double board[2][THREADS];
    const int members = p.images / p.groups, width = 3 * p.classes;
    const float *from = p.sums + static_cast<i64>(blockIdx.x) * members * width;
    float *to = p.slopes + static_cast<i64>(blockIdx.x) * 2 * p.classes;
    // P, I and R of a class.
    auto sums = [&](int c, double (&v)[3]) {
        v[0] = v[1] = v[2] = 0.0;
        for (int m = 0; m < members; m++)
#pragma unroll
            for (int k = 0; k < 3; k++) v[k] += from[static_cast<i64>(m) * width + k * p.classes + c];
    };
    auto weight = [](double real) { return real > 0.0 ? 1.0 / (real * real) : 0.0; };
    double total[2] = {0.0, 0.0}, loss = 0.0;
    const double share = 1.0 / p.groups;
    if (p.generalized) {
        for (int c = threadIdx.x; c < p.classes; c += THREADS) {
            double v[3];
            sums(c, v);
            // A NaN counts whether or not its class is there.
            const double w = v[0] == v[0] ? weight(v[2]) : v[0];
            total[0] += w * v[1], total[1] += w * (v[0] + v[2]);
        }
        sum_block(total, board);
        const double top = total[0], bottom = total[1];
        loss = bottom == 0.0 ? 0.0 : share * (1.0 - 2.0 * top / bottom);
        for (int c = threadIdx.x; c < p.classes; c += THREADS) {
            double v[3];
            sums(c, v);
            const double w = bottom == 0.0 ? 0.0 : 2.0 * share * weight(v[2]) / bottom;
            to[c] = static_cast<float>(bottom == 0.0 ? 0.0 : w * top / bottom);
            to[p.classes + c] = static_cast<float>(-w);
        }
    } else {
        const double each = share / p.classes;
        for (int c = threadIdx.x; c < p.classes; c += THREADS) {
            double v[3];
            sums(c, v);
            const double top = 2.0 * v[1] + EPS, bottom = v[0] + v[2] + EPS;
            total[0] += each * (1.0 - top / bottom);
            to[c] = static_cast<float>(each * top / (bottom * bottom));
            to[p.classes + c] = static_cast<float>(-2.0 * each / bottom);
        }
        sum_block(total, board);
        loss = total[0];
    }
    if (threadIdx.x == 0) p.losses[blockIdx.x] = make_float2(static_cast<float>(loss), 1.0f);
}

extern "C" __global__ void __launch_bounds__(THREADS) dice_total(const __grid_constant__ Params p) {
    const double2 sums = sum_losses<THREADS>(p.losses, p.groups);
    if (threadIdx.x == 0) *p.y = static_cast<float>(sums.x);
}

// The f32 numbers of a piece of classes.
static __device__ __forceinline__ void load_slopes(V &v, const float *from) {
    if constexpr (VEC) {
#pragma unroll
        for (int part = 0; part < V::SIZE / 4; part++) {
            float four[4];
            load_chunk(four, from + 4 * part);
#pragma unroll
            for (int k = 0; k < 4; k++) v.v[4 * part + k] = four[k];
        }
    } else {
        v.v[0] = *from;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) dice_bwd(const __grid_constant__ Params p) {
    const int lanes = p.lanes, lane = threadIdx.x & (lanes - 1), first = threadIdx.x / lanes, step = blockDim.x / lanes;
    const int image = blockIdx.x / p.runs, begin = blockIdx.x % p.runs * p.run, count = min(p.run, p.pixels - begin);
    const i64 origin = static_cast<i64>(image) * p.pixels + begin;
    const float *slopes = p.slopes + (p.groups == 1 ? 0 : static_cast<i64>(image) * 2 * p.classes);
    const float gy = *p.gy;
    // Slopes of P for the classes that are held.
    V kept[HELD];
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        const int c = (j * lanes + lane) * V::SIZE;
        if (c < p.classes) load_slopes(kept[j], slopes + c);
    }
    for (int i = first; i - first < count; i += step) {
        LabelKind kind = LABEL_IGNORED;
        i64 label = -1;
        if (i < count) {
            label = p.labels[origin + i];
            kind = kind_of(label, p.classes, p.has_ignore, p.ignore);
        }
        Pixel pixel;
        pixel.from = p.z + (origin + i) * p.classes;
        pixel.lane = lane, pixel.lanes = lanes, pixel.classes = p.classes;
        pixel.load(kind != LABEL_IGNORED);
        const float2 soft = pixel.softmax();
        const float by = kind == LABEL_WRONG ? not_a_number() : soft.y;
        const float hit = kind == LABEL_CLASS ? slopes[p.classes + label] : 0.0f;
        auto slope = [&](int j, int k, auto held) {
            const int c = pixel.channel(j) + k;
            float v = c == label ? hit : 0.0f;
            if constexpr (held.value)
                v += kept[j].v[k];
            else
                v += slopes[c];
            return v;
        };
        float mean = 0.0f;
        pixel.each([&](int j, V &v, auto held) {
#pragma unroll
            for (int k = 0; k < V::SIZE; k++) {
                // Exponentials stay where they are held.
                v.v[k] = __expf(v.v[k] - soft.x) * by;
                mean = fmaf(v.v[k], slope(j, k, held), mean);
            }
        });
        mean = sum_lanes(mean, lanes);
        T *to = p.gz + (origin + i) * p.classes;
        if (i < count && kind == LABEL_IGNORED) {
            V zero;
#pragma unroll
            for (int k = 0; k < V::SIZE; k++) zero.v[k] = 0.0f;
            for (int c = lane * V::SIZE; c < p.classes; c += lanes * V::SIZE) zero.store(to + c);
        }
        pixel.each([&](int j, V &v, auto held) {
#pragma unroll
            for (int k = 0; k < V::SIZE; k++) {
                const float probability = held.value ? v.v[k] : __expf(v.v[k] - soft.x) * by;
                v.v[k] = gy * probability * (slope(j, k, held) - mean);
            }
            v.store(to + pixel.channel(j));
        });
    }
}
