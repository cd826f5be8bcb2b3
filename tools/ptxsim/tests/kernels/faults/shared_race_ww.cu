// Two warps write the same elements, and nothing says who comes last.
// RUN: --grid 1 --block 64 --arg buf:f32[64]=iota --arg buf:f32[32]=uninit

extern "C" __global__ void shared_race_ww_bad(const float *in, float *out) {
    __shared__ float tile[32];
    int t = threadIdx.x;
    float v = in[t];
    tile[t & 31] = v; // FAULT: shared_race
    __syncthreads();
    if (t < 32) out[t] = tile[t];
}

extern "C" __global__ void shared_race_ww_good(const float *in, float *out) {
    __shared__ float tile[32];
    int t = threadIdx.x;
    float v = in[t];
    if (t >= 32) tile[t & 31] = v;
    __syncthreads();
    if (t < 32) tile[t] += v;
    __syncthreads();
    if (t < 32) out[t] = tile[t];
}
