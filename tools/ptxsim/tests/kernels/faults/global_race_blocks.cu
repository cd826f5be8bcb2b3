// Blocks write the same elements.
// RUN: --grid 4 --block 64 --arg buf:f32[256]=iota --arg buf:f32[64]=zeros

extern "C" __global__ void global_race_blocks_bad(const float *in, float *out) {
    float v = in[blockIdx.x * 64 + threadIdx.x];
    out[threadIdx.x] = v; // FAULT: global_race
}

extern "C" __global__ void global_race_blocks_good(const float *in, float *out) {
    float v = in[blockIdx.x * 64 + threadIdx.x];
    atomicAdd(&out[threadIdx.x], v);
}
