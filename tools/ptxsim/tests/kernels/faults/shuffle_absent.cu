// A shuffle that names all lanes, in a branch that half of them take.
// RUN: --grid 1 --block 32 --arg buf:f32[32]=iota --arg buf:f32[32]=uninit

extern "C" __global__ void shuffle_absent_bad(const float *in, float *out) {
    int t = threadIdx.x;
    float v = in[t];
    if (t < 16) {
        v += __shfl_down_sync(0xffffffffu, v, 8); // FAULT: absent_lane
        out[t] = v;
    }
}

extern "C" __global__ void shuffle_absent_good(const float *in, float *out) {
    int t = threadIdx.x;
    float v = in[t];
    if (t < 16) {
        v += __shfl_down_sync(0x0000ffffu, v, 8, 16);
        out[t] = v;
    }
}
