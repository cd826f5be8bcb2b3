// A transposition through shared memory. Without its swizzle the result is the same, and every warp's read meets one
// bank 32 times: no finding, a counter.
// COUNTER: memory/shared_load/wavefronts
// RUN: --grid 4 --block 256 --arg buf:f32[4096]=iota --arg buf:f32[4096]=uninit

extern "C" __global__ void swizzle_removed_bad(const float *in, float *out) {
    __shared__ float tile[32][32];
    int x = threadIdx.x & 31, y = threadIdx.x >> 5;
    const float *from = in + blockIdx.x * 1024;
    for (int i = y; i < 32; i += 8) tile[i][x] = from[i * 32 + x];
    __syncthreads();
    for (int i = y; i < 32; i += 8) out[blockIdx.x * 1024 + i * 32 + x] = tile[x][i];
}

extern "C" __global__ void swizzle_removed_good(const float *in, float *out) {
    __shared__ float tile[32][32];
    int x = threadIdx.x & 31, y = threadIdx.x >> 5;
    const float *from = in + blockIdx.x * 1024;
    for (int i = y; i < 32; i += 8) tile[i][x ^ i] = from[i * 32 + x];
    __syncthreads();
    for (int i = y; i < 32; i += 8) out[blockIdx.x * 1024 + i * 32 + x] = tile[x][i ^ x];
}
