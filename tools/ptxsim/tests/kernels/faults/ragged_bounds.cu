// No bounds check at all: right for 128 elements, wrong for 100.
// PASSES: --grid 1 --block 128 --arg buf:f32[128]=iota --arg buf:f32[128]=uninit --arg i32:128
// RUN: --grid 1 --block 128 --arg buf:f32[128]=iota --arg buf:f32[100]=uninit --arg i32:100

extern "C" __global__ void ragged_bounds_bad(const float *in, float *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = in[i];
    out[i] = 2.0f * v; // FAULT: out_of_bounds
}

extern "C" __global__ void ragged_bounds_good(const float *in, float *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = in[i];
    out[i] = 2.0f * v;
}
