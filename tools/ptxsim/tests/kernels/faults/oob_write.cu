// A write one element beyond a buffer: the comparison takes the end in.
// RUN: --grid 1 --block 128 --arg buf:f32[101]=iota --arg buf:f32[100]=uninit --arg i32:100

extern "C" __global__ void oob_write_bad(const float *in, float *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) {
        float v = in[i];
        out[i] = v * v; // FAULT: out_of_bounds
    }
}

extern "C" __global__ void oob_write_good(const float *in, float *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float v = in[i];
        out[i] = v * v;
    }
}
