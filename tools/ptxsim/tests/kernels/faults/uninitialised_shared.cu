// The tail of a tile is left as it was, and read.
// RUN: --grid 1 --block 128 --arg buf:f32[100]=iota --arg buf:f32[128]=uninit --arg i32:100

extern "C" __global__ void uninitialised_shared_bad(const float *in, float *out, int n) {
    __shared__ float tile[128];
    int t = threadIdx.x;
    if (t < n) tile[t] = in[t];
    __syncthreads();
    float v = tile[127 - t]; // FAULT: uninitialised_shared
    out[t] = v;
}

extern "C" __global__ void uninitialised_shared_good(const float *in, float *out, int n) {
    __shared__ float tile[128];
    int t = threadIdx.x;
    tile[t] = t < n ? in[t] : 0.0f;
    __syncthreads();
    float v = tile[127 - t];
    out[t] = v;
}
