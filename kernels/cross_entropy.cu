// Cross-entropy of logits against labels or against the softened output of a teacher.
//
// Maths: hard: y = 1/M sum over rows of (1 - e) (lse - z[label]) + e (lse - mean z), lse = log sum exp z;
//              gz = gy/M (softmax(z) - (1 - e) onehot - e/K), 0 in ignored rows;
//        soft: y = f/R sum over rows of lse(z/tau) - sum over k of softmax(t/tau)[k] z[k]/tau;
//              gz = gy f/(R tau) (softmax(z/tau) - softmax(t/tau)), f = 1 or tau^2.
//
// Memory: z, t, gz [rows, K] of T; labels i64 [rows]; of every row f32 (largest logit, 1 / sum of exponentials), with SOFT of
// student and teacher in turn; parts f32 [blocks, 2].
//
//     fwd, bwd  block -> `run` rows -> warp -> 32 / lanes rows at a time -> lane: 16 bytes of classes (one without VEC)
//               row  | 0  1  2 .. lanes-1 | 0  1  2 .. lanes-1 | ..
//     total     one block
//
// Numerics: one pass with a running maximum, so that no exponential overflows; what is linear in z is summed relative to the
// row's first logit, so that logits far from 0 lose nothing; f32 in a block, f64 across blocks; gz rounded once, `=`. The same
// bits in every run. A label that is no class makes the loss and its row's gradient NaN.
//
// Limits (H100, predicted; simulated only): fwd sizeof(T) bytes (SOFT twice) and about 6 operations a logit, bwd twice
// (three times) sizeof(T) bytes: memory, 3.35 TB/s.
#include "tile/label.cuh"
#include "tile/piece.cuh"

#ifndef VEC
#define VEC 1
#endif
#ifndef SOFT
#define SOFT 0
#endif

constexpr int THREADS = 256, WARPS = THREADS / 32;

// As in Rust: `cross_entropy::cuda::Params`.
struct Params {
    const T *z, *t;
    const i64 *labels;
    T *gz;
    float2 *stats;
    float2 *parts;
    float *y, *scale;
    const float *gy;
    i64 rows, ignore;
    int classes, lanes, run, blocks;
    int has_ignore;
    float inverse_tau;
    float factor;       // of the loss
    float grad_factor;  // of the gradient
    float smoothing;
    int pad;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(Params) == PARAMS_BYTES, "the host passes another struct");
#endif

typedef Piece<VEC != 0> V;

// Sum of exp((v - max) inverse_tau), and with the same weights of something else.
struct Exponentials {
    float max, sum, weighted;

    __device__ __forceinline__ void start() { max = -__int_as_float(0x7f800000), sum = weighted = 0.0f; }
    // Makes `higher` the maximum, if it is.
    __device__ __forceinline__ void raise(float higher, float inverse_tau) {
        if (higher > max) {
            const float by = __expf((max - higher) * inverse_tau);
            sum *= by, weighted *= by, max = higher;
        }
    }
    __device__ __forceinline__ void merge_lanes(int lanes, float inverse_tau) {
        for (int o = lanes >> 1; o > 0; o >>= 1) {
            Exponentials other;
            other.max = __shfl_xor_sync(0xffffffffu, max, o);
            other.sum = __shfl_xor_sync(0xffffffffu, sum, o);
            other.weighted = __shfl_xor_sync(0xffffffffu, weighted, o);
            raise(other.max, inverse_tau), other.raise(max, inverse_tau);
            sum += other.sum, weighted += other.weighted;
        }
    }
};

static __device__ __forceinline__ float largest(const V &v) {
    float m = v.v[0];
#pragma unroll
    for (int k = 1; k < V::SIZE; k++) m = fmaxf(m, v.v[k]);
    return m;
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_fwd(const __grid_constant__ Params p) {
    __shared__ float board[2][WARPS];
    const int lanes = p.lanes, lane = threadIdx.x & (lanes - 1), first = threadIdx.x / lanes, step = THREADS / lanes;
    const i64 begin = static_cast<i64>(blockIdx.x) * p.run;
    const int count = static_cast<int>(min(static_cast<i64>(p.run), p.rows - begin));
    float loss = 0.0f, rows = 0.0f;
    for (int i = first; i - first < count; i += step) {
        const bool there = i < count;
        const i64 row = begin + i;
        LabelKind kind = LABEL_CLASS;
        int label = -1;
        if (!SOFT && there) {
            const i64 given = p.labels[row];
            kind = kind_of(given, p.classes, p.has_ignore, p.ignore);
            if (kind == LABEL_CLASS) label = static_cast<int>(given);
        }
        const bool counts = there && kind != LABEL_IGNORED;
        const T *from = p.z + row * p.classes;
        const T *of = p.t + row * p.classes;
        int c = lane * V::SIZE;
        bool more = counts && c < p.classes;
        V z, t;
        z.v[0] = 0.0f;
        if (more) {
            z.load(from + c);
            if (SOFT) t.load(of + c);
        }
        const float reference = __shfl_sync(0xffffffffu, z.v[0], 0, lanes);
        Exponentials student, teacher;
        student.start(), teacher.start();
        float all = 0.0f, picked = 0.0f;
        while (more) {
            student.raise(largest(z), p.inverse_tau);
            if (SOFT) teacher.raise(largest(t), p.inverse_tau);
#pragma unroll
            for (int k = 0; k < V::SIZE; k++) {
                student.sum += __expf((z.v[k] - student.max) * p.inverse_tau);
                if (SOFT) {
                    const float e = __expf((t.v[k] - teacher.max) * p.inverse_tau);
                    teacher.sum += e;
                    teacher.weighted = fmaf(e, z.v[k] - reference, teacher.weighted);
                } else {
                    all += z.v[k] - reference;
                    if (c + k == label) picked = z.v[k] - reference;
                }
            }
            c += lanes * V::SIZE;
            more = c < p.classes;
            if (more) {
                z.load(from + c);
                if (SOFT) t.load(of + c);
            }
        }
        student.merge_lanes(lanes, p.inverse_tau);
        if (SOFT)
            teacher.merge_lanes(lanes, p.inverse_tau);
        else
            all = sum_lanes(all, lanes), picked = sum_lanes(picked, lanes);
        // Relative to the reference.
        const float lse = logf(student.sum) + (student.max - reference) * p.inverse_tau;
        if (counts && lane == 0) {
            rows += 1.0f;
            if (SOFT) {
                loss += lse - teacher.weighted / teacher.sum * p.inverse_tau;
                p.stats[2 * row] = make_float2(student.max, 1.0f / student.sum);
                p.stats[2 * row + 1] = make_float2(teacher.max, 1.0f / teacher.sum);
            } else {
                float v = (1.0f - p.smoothing) * (lse - picked);
                if (p.smoothing > 0.0f) v += p.smoothing * (lse - all / static_cast<float>(p.classes));
                loss += kind == LABEL_WRONG ? not_a_number() : v;
                p.stats[row] = make_float2(student.max, 1.0f / student.sum);
            }
        }
    }
    loss = sum_lanes(loss, 32), rows = sum_lanes(rows, 32);
    if (threadIdx.x % 32 == 0) board[0][threadIdx.x / 32] = loss, board[1][threadIdx.x / 32] = rows;
    __syncthreads();
    if (threadIdx.x != 0) return;
    float2 part = make_float2(0.0f, 0.0f);
    for (int w = 0; w < WARPS; w++) part.x += board[0][w], part.y += board[1][w];
    p.parts[blockIdx.x] = part;
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_total(const __grid_constant__ Params p) {
    const double2 sums = sum_losses<THREADS>(p.parts, p.blocks);
    if (threadIdx.x != 0) return;
    const double rows = sums.y > 1.0 ? sums.y : 1.0;
    *p.y = static_cast<float>(p.factor * sums.x / rows);
    *p.scale = static_cast<float>(p.grad_factor / rows);
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_bwd(const __grid_constant__ Params p) {
    const int lanes = p.lanes, lane = threadIdx.x & (lanes - 1), step = THREADS / lanes;
    const i64 begin = static_cast<i64>(blockIdx.x) * p.run;
    const int count = static_cast<int>(min(static_cast<i64>(p.run), p.rows - begin));
    const float scale = *p.gy * *p.scale, hit = 1.0f - p.smoothing, all = p.smoothing / static_cast<float>(p.classes);
    for (int i = threadIdx.x / lanes; i < count; i += step) {
        const i64 row = begin + i;
        LabelKind kind = LABEL_CLASS;
        int label = -1;
        float2 student = make_float2(0.0f, 0.0f), teacher = student;
        if (SOFT) {
            student = p.stats[2 * row], teacher = p.stats[2 * row + 1];
        } else {
            const i64 given = p.labels[row];
            kind = kind_of(given, p.classes, p.has_ignore, p.ignore);
            if (kind == LABEL_CLASS) label = static_cast<int>(given);
            if (kind != LABEL_IGNORED) student = p.stats[row];
            if (kind == LABEL_WRONG) student.y = not_a_number();
        }
        const i64 at = row * p.classes;
        for (int c = lane * V::SIZE; c < p.classes; c += lanes * V::SIZE) {
            V z, t;
            if (kind != LABEL_IGNORED) {
                z.load(p.z + at + c);
                if (SOFT) t.load(p.t + at + c);
            }
#pragma unroll
            for (int k = 0; k < V::SIZE; k++) {
                float g = 0.0f;
                if (kind != LABEL_IGNORED) {
                    g = __expf((z.v[k] - student.x) * p.inverse_tau) * student.y;
                    if (SOFT)
                        g -= __expf((t.v[k] - teacher.x) * p.inverse_tau) * teacher.y;
                    else
                        g -= c + k == label ? hit + all : all;
                    g *= scale;
                }
                z.v[k] = g;
            }
            z.store(p.gz + at + c);
        }
    }
}
