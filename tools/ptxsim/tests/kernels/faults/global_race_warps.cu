// Warps of a block exchange through global memory without __syncthreads.
// RUN: --grid 1 --block 64 --arg buf:f32[64]=iota --arg buf:f32[64]=zeros --arg buf:f32[64]=uninit

extern "C" __global__ void global_race_warps_bad(const float *in, float *exchange, float *out) {
    int t = threadIdx.x;
    float v = in[t];
    exchange[t] = v; // ALSO: global_race
    float w = exchange[63 - t]; // FAULT: global_race
    out[t] = w;
}

extern "C" __global__ void global_race_warps_good(const float *in, float *exchange, float *out) {
    int t = threadIdx.x;
    float v = in[t];
    exchange[t] = v;
    __syncthreads();
    float w = exchange[63 - t];
    out[t] = w;
}
