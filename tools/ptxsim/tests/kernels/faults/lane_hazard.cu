// Lanes of a warp exchange through shared memory without __syncwarp.
// RUN: --grid 1 --block 32 --arg buf:f32[32]=iota --arg buf:f32[32]=uninit

extern "C" __global__ void lane_hazard_bad(const float *in, float *out) {
    __shared__ float tile[32];
    int t = threadIdx.x;
    float v = in[t];
    tile[t] = v;
    float w = tile[31 - t]; // FAULT: lane_hazard
    out[t] = w;
}

extern "C" __global__ void lane_hazard_good(const float *in, float *out) {
    __shared__ float tile[32];
    int t = threadIdx.x;
    float v = in[t];
    tile[t] = v;
    __syncwarp();
    float w = tile[31 - t];
    out[t] = w;
}
