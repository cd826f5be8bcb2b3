// __syncthreads where only half a warp comes.
// RUN: --grid 1 --block 64 --arg buf:f32[64]=iota --arg buf:f32[64]=uninit --arg i32:48

extern "C" __global__ void barrier_divergence_bad(const float *in, float *out, int n) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = 0.0f;
    __syncthreads();
    if (t < n) {
        tile[t] = in[t];
        __syncthreads(); // FAULT: barrier_divergence
        out[t] = tile[t];
    }
}

extern "C" __global__ void barrier_divergence_good(const float *in, float *out, int n) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = 0.0f;
    __syncthreads();
    if (t < n) tile[t] = in[t];
    __syncthreads();
    if (t < n) out[t] = tile[t];
}
