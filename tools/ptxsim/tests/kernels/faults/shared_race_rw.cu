// A loop over tiles without the barrier at its end: the next tile overwrites what slower warps still read.
// RUN: --grid 1 --block 128 --arg buf:f32[512]=iota --arg buf:f32[128]=uninit --arg i32:4

extern "C" __global__ void shared_race_rw_bad(const float *in, float *out, int tiles) {
    __shared__ float tile[128];
    int t = threadIdx.x;
    float sum = 0.0f;
#pragma unroll 1
    for (int k = 0; k < tiles; k++) {
        tile[t] = in[k * 128 + t]; // FAULT: shared_race
        __syncthreads();
        sum += tile[127 - t]; // ALSO: shared_race
    }
    out[t] = sum;
}

extern "C" __global__ void shared_race_rw_good(const float *in, float *out, int tiles) {
    __shared__ float tile[128];
    int t = threadIdx.x;
    float sum = 0.0f;
#pragma unroll 1
    for (int k = 0; k < tiles; k++) {
        tile[t] = in[k * 128 + t];
        __syncthreads();
        sum += tile[127 - t];
        __syncthreads();
    }
    out[t] = sum;
}
