// A tile is read by other warps with no __syncthreads after it was written.
// RUN: --grid 2 --block 128 --arg buf:f32[256]=iota --arg buf:f32[256]=uninit

extern "C" __global__ void shared_race_wr_bad(const float *in, float *out) {
    __shared__ float tile[128];
    int t = threadIdx.x, i = blockIdx.x * 128 + t;
    tile[t] = 0.0f;
    __syncthreads();
    tile[t] = in[i]; // ALSO: shared_race
    float v = tile[127 - t]; // FAULT: shared_race
    out[i] = v;
}

extern "C" __global__ void shared_race_wr_good(const float *in, float *out) {
    __shared__ float tile[128];
    int t = threadIdx.x, i = blockIdx.x * 128 + t;
    tile[t] = 0.0f;
    __syncthreads();
    tile[t] = in[i];
    __syncthreads();
    float v = tile[127 - t];
    out[i] = v;
}
