// Updates of many tensors by one launch: a block takes a chunk of a tensor.
//
//     tensors    |--- 0 ---------------|- 1 -|--- 2 -----------|            of any sizes, anywhere in memory
//     chunks     |  0  |  1  |  2  | 3 |  4  |  5  |  6  |  7  |            of CHUNK elements but for a tensor's last
//     block           ^ one chunk: 256 threads x 2 groups of 4 elements at a time
//
// Every chunk's sums of squares go to a place of its own, in f64: whoever wants the sum of a tensor, or of all, adds them in
// order. Nothing is written in a step whose loss or gradient is not finite (`Verdict`).
#pragma once
#include "tile/types.cuh"

// The most elements of a chunk. As in Rust: `untaped::multi_tensor::CHUNK`.
constexpr int CHUNK = 8192;
constexpr int UPDATE_THREADS = 256;

// What a chunk has, by place in `TensorChunk::data`, as bits of READS and WRITES.
constexpr int VALUE = 1, GRAD = 2, FIRST = 4, SECOND = 8;

// The structs of this file, as in Rust: `untaped::multi_tensor`.
struct __align__(16) TensorChunk {
    float *data[4]; // value, sum of gradients, the optimiser's buffers
    bf16 *shadow;   // the value in bf16, or null
    int elements, tensor;
};

struct __align__(16) TensorInfo {
    float lr_scale;
    int decays;
    int first_chunk, chunks;
};

// What changes from step to step.
struct __align__(16) StepScalars {
    double lr;
    double inverse_bias_1;     // 1 / (1 - beta1^step)
    float bias_1, root_bias_2; // 1 - beta1^step, sqrt(1 - beta2^step); 1 without correction
    float enters;              // share of the gradient that enters a momentum buffer
    float ema_rate;            // 1 - decay of the average
};

// What a step's gradients were found to be.
struct __align__(16) Verdict {
    double norm, clipped_norm; // of the mean over the parts; the same after clipping
    float mean, clip;          // factors of the sum of gradients: 1 / parts, and what clips it
    int finite, pad;
};

struct Updates {
    const TensorChunk *chunks;
    const TensorInfo *tensors;
    const StepScalars *scalars;
    const Verdict *verdict;
    const int *present;   // by tensor: whether the step gave it a gradient
    const double *grads;  // by chunk: squares of the sum of gradients
    double2 *squares;     // by chunk: squares of the change and of the new value
    double2 *tensor_sums; // by chunk: what the optimiser sums over a tensor
};

struct Item {
    float value, grad, first, second;
};

static __device__ __forceinline__ void load_own(float (&v)[4], const float *p) { unpack(v, ptx::load_global_16_own(p), 0.0f); }

// Stores two groups of four values of each of two neighbouring threads as bf16, 16 bytes at a time: the even thread takes
// both first groups, the odd one both second groups. `first` and `second` are the thread's places.
static __device__ __forceinline__ void store_shadows(bf16 *to, int first, int second, const float (&a)[4], const float (&b)[4]) {
    const bool odd = threadIdx.x & 1;
    const u32 mine[2] = {ptx::pack_bf16x2(odd ? b[0] : a[0], odd ? b[1] : a[1]),
                         ptx::pack_bf16x2(odd ? b[2] : a[2], odd ? b[3] : a[3])};
    const u32 given[2] = {ptx::pack_bf16x2(odd ? a[0] : b[0], odd ? a[1] : b[1]),
                          ptx::pack_bf16x2(odd ? a[2] : b[2], odd ? a[3] : b[3])};
    const u32 taken[2] = {__shfl_xor_sync(0xffffffffu, given[0], 1), __shfl_xor_sync(0xffffffffu, given[1], 1)};
    if (odd)
        ptx::store_global_16(to + second - 4, make_uint4(taken[0], taken[1], mine[0], mine[1]));
    else
        ptx::store_global_16(to + first, make_uint4(mine[0], mine[1], taken[0], taken[1]));
}

// Calls f(Item &) for every element of a chunk with what READS says, writes what WRITES says, and the value's shadow if
// there is one and SHADOW. f gives two numbers; this, their sums of squares over the thread's elements. All threads call it.
template <int READS, int WRITES, bool SHADOW, typename F>
static __device__ __forceinline__ double2 visit(const TensorChunk &c, F f) {
    double2 sums = make_double2(0.0, 0.0);
    const auto load = [&](float (&v)[4][4], int at) {
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (READS >> k & 1) load_own(v[k], c.data[k] + at);
    };
    const auto store = [&](const float (&v)[4][4], int at) {
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (WRITES >> k & 1) store_chunk(c.data[k] + at, v[k]);
    };
    const auto one = [&](float &value, float &grad, float &first, float &second) {
        Item e = {value, grad, first, second};
        const float2 s = f(e);
        value = e.value, grad = e.grad, first = e.first, second = e.second;
        sums.x += static_cast<double>(s.x) * s.x, sums.y += static_cast<double>(s.y) * s.y;
    };
    const auto four = [&](float (&v)[4][4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) one(v[0][i], v[1][i], v[2][i], v[3][i]);
    };
    const int groups = c.elements / 4;
    int group = threadIdx.x;
#pragma unroll 1
    for (; group - static_cast<int>(threadIdx.x) + 2 * UPDATE_THREADS <= groups; group += 2 * UPDATE_THREADS) {
        const int a = 4 * group, b = 4 * (group + UPDATE_THREADS);
        float v[4][4] = {}, w[4][4] = {};
        load(v, a), load(w, b);
        four(v), four(w);
        store(v, a), store(w, b);
        if (SHADOW && c.shadow) store_shadows(c.shadow, a, b, v[0], w[0]);
    }
#pragma unroll 1
    for (; group < groups; group += UPDATE_THREADS) {
        const int at = 4 * group;
        float v[4][4] = {};
        load(v, at), four(v), store(v, at);
        if (SHADOW && c.shadow) {
            const uint2 packed = make_uint2(ptx::pack_bf16x2(v[0][0], v[0][1]), ptx::pack_bf16x2(v[0][2], v[0][3]));
            *reinterpret_cast<uint2 *>(c.shadow + at) = packed;
        }
    }
    const int at = 4 * groups + threadIdx.x;
    if (at < c.elements) {
        float v[4] = {};
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (READS >> k & 1) v[k] = c.data[k][at];
        one(v[0], v[1], v[2], v[3]);
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (WRITES >> k & 1) c.data[k][at] = v[k];
        if (SHADOW && c.shadow) c.shadow[at] = from_float<bf16>(v[0]);
    }
    return sums;
}

// The sum over a block of THREADS threads, for all of them. All of them call it.
template <int THREADS> static __device__ __forceinline__ double2 block_sum(double2 v) {
    __shared__ double2 warps[THREADS / 32];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        v.x += __shfl_xor_sync(0xffffffffu, v.x, offset);
        v.y += __shfl_xor_sync(0xffffffffu, v.y, offset);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    double2 sum = make_double2(0.0, 0.0);
#pragma unroll 8
    for (int i = 0; i < THREADS / 32; i++) sum.x += warps[i].x, sum.y += warps[i].y;
    return sum;
}

// The sum of `count` pairs, for all threads of the block.
template <int THREADS> static __device__ __forceinline__ double2 sum_pairs(const double2 *from, int count) {
    double2 sum = make_double2(0.0, 0.0);
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const double2 v = from[i];
        sum.x += v.x, sum.y += v.y;
    }
    return block_sum<THREADS>(sum);
}

// The same of single numbers.
template <int THREADS> static __device__ __forceinline__ double sum_numbers(const double *from, int count) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += from[i];
    return block_sum<THREADS>(make_double2(sum, 0.0)).x;
}

// What an update of one chunk begins with.
struct ChunkUpdate {
    TensorChunk chunk;
    TensorInfo tensor;
    Verdict verdict;
    double lr; // of the tensor
    bool runs; // the step is finite and the tensor has a gradient; the same for the whole block

    __device__ __forceinline__ ChunkUpdate(const Updates &u)
        : chunk(u.chunks[blockIdx.x]), tensor(u.tensors[chunk.tensor]), verdict(*u.verdict),
          lr(u.scalars->lr * tensor.lr_scale), runs(verdict.finite && u.present[chunk.tensor]) {}

    // The gradient of which `sum` is the sum over the parts: mean, clipped; rounded as on the CPU, not fused with what follows.
    __device__ __forceinline__ float gradient(float sum) const { return __fmul_rn(sum * verdict.mean, verdict.clip); }
};

// Keeps the sums over the block's chunk at `to`.
static __device__ __forceinline__ void keep_sums(double2 *to, double2 sums) {
    sums = block_sum<UPDATE_THREADS>(sums);
    if (threadIdx.x == 0) to[blockIdx.x] = sums;
}
