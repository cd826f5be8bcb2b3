// The kernel itself finds that something is wrong.
// RUN: --grid 1 --block 32 --arg buf:i32[32]=iota --arg buf:i32[32]=uninit

extern "C" __global__ void trap_bad(const int *in, int *out) {
    int v = in[threadIdx.x];
    if (v > 30) {
        __trap(); // FAULT: trap
    }
    out[threadIdx.x] = v;
}

extern "C" __global__ void trap_good(const int *in, int *out) {
    int v = in[threadIdx.x];
    if (v > 31) {
        __trap();
    }
    out[threadIdx.x] = v;
}
