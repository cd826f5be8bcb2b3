// A sum into memory that nobody cleared.
// RUN: --grid 2 --block 64 --arg buf:f32[100]=iota --arg buf:f32[100]=uninit --arg i32:100

extern "C" __global__ void uninitialised_global_bad(const float *in, float *sum, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float v = in[i];
        float old = sum[i]; // FAULT: uninitialised_global
        sum[i] = old + v;
    }
}

extern "C" __global__ void uninitialised_global_good(const float *in, float *sum, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float v = in[i];
        volatile float *mine = sum + i;
        *mine = 0.0f;
        float old = *mine;
        sum[i] = old + v;
    }
}
