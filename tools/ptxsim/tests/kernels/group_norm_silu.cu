// GroupNorm and SiLU in f32, in both layouts. One block of any whole number of warps (at most 1024 threads) for one
// group of one image.

static __device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

// Mean, sum of squared deviations, count; two of them are combined as Chan's formula has it.
struct Welford {
    float mean, m2, count;
};

static __device__ __forceinline__ Welford combine(Welford a, Welford b) {
    const float count = a.count + b.count;
    const float share = count > 0.0f ? b.count / count : 0.0f;
    const float delta = b.mean - a.mean;
    Welford c;
    c.mean = a.mean + delta * share;
    c.m2 = a.m2 + b.m2 + delta * delta * a.count * share;
    c.count = count;
    return c;
}

static __device__ __forceinline__ Welford combine_warp(Welford w) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        Welford o;
        o.mean = __shfl_xor_sync(0xffffffffu, w.mean, d);
        o.m2 = __shfl_xor_sync(0xffffffffu, w.m2, d);
        o.count = __shfl_xor_sync(0xffffffffu, w.count, d);
        w = combine(w, o);
    }
    return w;
}

static __device__ __forceinline__ Welford push(Welford w, float x) {
    w.count += 1.0f;
    const float delta = x - w.mean;
    w.mean += delta / w.count;
    w.m2 += delta * (x - w.mean);
    return w;
}

// NCHW: a group is one stretch of C/G * HW floats. Statistics in one pass by Welford's update.
extern "C" __global__ void group_norm_silu_nchw(const float *__restrict__ x, const float *__restrict__ gamma,
                                                const float *__restrict__ beta, float *__restrict__ y, int C, int HW,
                                                int G, float eps) {
    __shared__ Welford parts[32];
    const int g = blockIdx.x % G;
    const int per = C / G, size = per * HW;
    const size_t base = (size_t)blockIdx.x * size;
    const bool aligned = ((size | HW) & 3) == 0;

    Welford w = {0.0f, 0.0f, 0.0f};
    if (aligned) {
        const float4 *x4 = reinterpret_cast<const float4 *>(x + base);
        for (int i = threadIdx.x; i < size / 4; i += blockDim.x) {
            const float4 v = x4[i];
            w = push(push(push(push(w, v.x), v.y), v.z), v.w);
        }
    } else {
        for (int i = threadIdx.x; i < size; i += blockDim.x) w = push(w, x[base + i]);
    }
    w = combine_warp(w);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    if (lane == 0) parts[warp] = w;
    __syncthreads();
    // Every warp combines the parts itself, which spares a second barrier.
    Welford all = {0.0f, 0.0f, 0.0f};
    if (lane < (int)(blockDim.x >> 5)) all = parts[lane];
    all = combine_warp(all);
    const float mean = all.mean, rstd = rsqrtf(all.m2 / all.count + eps);

    if (aligned) {
        const float4 *x4 = reinterpret_cast<const float4 *>(x + base);
        float4 *y4 = reinterpret_cast<float4 *>(y + base);
        for (int i = threadIdx.x; i < size / 4; i += blockDim.x) {
            const int c = g * per + i * 4 / HW;
            const float scale = gamma[c] * rstd, shift = beta[c] - mean * scale;
            float4 v = x4[i];
            v.x = silu(v.x * scale + shift);
            v.y = silu(v.y * scale + shift);
            v.z = silu(v.z * scale + shift);
            v.w = silu(v.w * scale + shift);
            y4[i] = v;
        }
    } else {
        for (int i = threadIdx.x; i < size; i += blockDim.x) {
            const int c = g * per + i / HW;
            const float scale = gamma[c] * rstd, shift = beta[c] - mean * scale;
            y[base + i] = silu(x[base + i] * scale + shift);
        }
    }
}

static __device__ __forceinline__ float sum_block(float v, float *parts) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    // The parts of the sum before may still be read.
    __syncthreads();
    if (lane == 0) parts[warp] = v;
    __syncthreads();
    v = lane < (int)(blockDim.x >> 5) ? parts[lane] : 0.0f;
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

// NHWC: a group is C/G channels of every pixel. Statistics in two passes: mean, then deviations from it.
extern "C" __global__ void group_norm_silu_nhwc(const float *__restrict__ x, const float *__restrict__ gamma,
                                                const float *__restrict__ beta, float *__restrict__ y, int C, int HW,
                                                int G, float eps) {
    __shared__ float parts[32];
    const int n = blockIdx.x / G, g = blockIdx.x % G;
    const int per = C / G, size = per * HW;
    const size_t base = (size_t)n * HW * C + (size_t)g * per;

    float sum = 0.0f;
    for (int i = threadIdx.x; i < size; i += blockDim.x) sum += x[base + (size_t)(i / per) * C + i % per];
    const float mean = sum_block(sum, parts) / size;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const float d = x[base + (size_t)(i / per) * C + i % per] - mean;
        squares += d * d;
    }
    const float rstd = rsqrtf(sum_block(squares, parts) / size + eps);
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const int c = i % per;
        const size_t at = base + (size_t)(i / per) * C + c;
        y[at] = silu((x[at] - mean) * rstd * gamma[g * per + c] + beta[g * per + c]);
    }
}
