// A pointer to memory that the host has freed.
// RUN: --grid 1 --block 32 --arg buf:f32[32]=iota --arg buf:f32[32]=freed --arg buf:f32[32]=uninit

extern "C" __global__ void use_after_free_bad(const float *in, const float *freed, float *out) {
    float v = in[threadIdx.x];
    float w = freed[threadIdx.x]; // FAULT: use_after_free
    out[threadIdx.x] = v + w;
}

extern "C" __global__ void use_after_free_good(const float *in, const float *freed, float *out) {
    float v = in[threadIdx.x];
    out[threadIdx.x] = freed != nullptr ? v : 0.0f;
}
