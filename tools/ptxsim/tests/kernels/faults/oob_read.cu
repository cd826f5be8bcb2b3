// A read one element beyond a buffer.
// RUN: --grid 1 --block 128 --arg buf:f32[100]=iota --arg buf:f32[100]=uninit --arg i32:100

extern "C" __global__ void oob_read_bad(const float *in, float *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float here = in[i];
        float next = in[i + 1]; // FAULT: out_of_bounds
        out[i] = next - here;
    }
}

extern "C" __global__ void oob_read_good(const float *in, float *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float here = in[i];
        float next = i + 1 < n ? in[i + 1] : here;
        out[i] = next - here;
    }
}
