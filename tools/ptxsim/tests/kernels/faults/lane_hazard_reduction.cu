// A tree reduction by one warp in shared memory, as it was written before Volta.
// RUN: --grid 1 --block 32 --arg buf:f32[64]=iota --arg buf:f32[1]=uninit

extern "C" __global__ void lane_hazard_reduction_bad(const float *in, float *out) {
    __shared__ float s[64];
    int t = threadIdx.x;
    s[t] = in[t];
    s[t + 32] = in[t + 32];
    s[t] += s[t + 32];
    if (t < 16) s[t] += s[t + 16]; // FAULT: lane_hazard
    if (t < 8) s[t] += s[t + 8]; // ALSO: lane_hazard
    if (t < 4) s[t] += s[t + 4]; // ALSO: lane_hazard
    if (t < 2) s[t] += s[t + 2]; // ALSO: lane_hazard
    if (t < 1) out[0] = s[0] + s[1]; // ALSO: lane_hazard
}

extern "C" __global__ void lane_hazard_reduction_good(const float *in, float *out) {
    __shared__ float s[64];
    int t = threadIdx.x;
    s[t] = in[t];
    s[t + 32] = in[t + 32];
    s[t] += s[t + 32];
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        __syncwarp();
        if (t < d) s[t] += s[t + d];
    }
    if (t < 1) out[0] = s[0];
}
