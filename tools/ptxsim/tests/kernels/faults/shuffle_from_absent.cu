// A shuffle that names the lanes that are there, and reads from one that is not.
// RUN: --grid 1 --block 32 --arg buf:f32[32]=iota --arg buf:f32[32]=uninit

extern "C" __global__ void shuffle_from_absent_bad(const float *in, float *out) {
    int t = threadIdx.x;
    float v = in[t];
    if (t < 16) {
        v += __shfl_xor_sync(0x0000ffffu, v, 16); // FAULT: absent_lane
        out[t] = v;
    }
}

extern "C" __global__ void shuffle_from_absent_good(const float *in, float *out) {
    int t = threadIdx.x;
    float v = in[t];
    v += __shfl_xor_sync(0xffffffffu, v, 16);
    if (t < 16) out[t] = v;
}
