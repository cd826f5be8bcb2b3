// The last block to finish adds up what all have left, without the fences that order its reads after their writes.
// RUN: --grid 8 --block 64 --arg buf:f32[512]=iota --arg buf:f32[8]=zeros --arg buf:u32[1]=zeros --arg buf:f32[1]=uninit

static __device__ float sum_block(float v, float *parts) {
    for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    return parts[0] + parts[1];
}

extern "C" __global__ void last_block_bad(const float *in, float *sums, unsigned *counter, float *out) {
    __shared__ float parts[2];
    float sum = sum_block(in[blockIdx.x * 64 + threadIdx.x], parts);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum; // ALSO: global_race
        unsigned before = atomicAdd(counter, 1u);
        if (before == gridDim.x - 1) {
            float total = 0.0f;
            for (unsigned b = 0; b < gridDim.x; b++) {
                total += sums[b]; // FAULT: global_race
            }
            *out = total;
        }
    }
}

extern "C" __global__ void last_block_good(const float *in, float *sums, unsigned *counter, float *out) {
    __shared__ float parts[2];
    float sum = sum_block(in[blockIdx.x * 64 + threadIdx.x], parts);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
        __threadfence();
        unsigned before = atomicAdd(counter, 1u);
        if (before == gridDim.x - 1) {
            __threadfence();
            float total = 0.0f;
            for (unsigned b = 0; b < gridDim.x; b++) {
                total += sums[b];
            }
            *out = total;
        }
    }
}
