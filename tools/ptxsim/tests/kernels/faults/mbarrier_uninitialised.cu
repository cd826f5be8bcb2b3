// An arrival at an mbarrier that nobody initialised.
// RUN: --grid 1 --block 32 --arg buf:f32[32]=iota --arg buf:f32[32]=uninit

#define INIT(bar, count) asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory")
#define ARRIVE(bar) asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(bar) : "memory")

extern "C" __global__ void mbarrier_uninitialised_bad(const float *in, float *out) {
    __shared__ __align__(8) unsigned long long barrier;
    unsigned bar = static_cast<unsigned>(__cvta_generic_to_shared(&barrier));
    float v = in[threadIdx.x];
    ARRIVE(bar); // FAULT: mbarrier_misuse // ALSO: uninitialised_shared
    out[threadIdx.x] = v;
}

extern "C" __global__ void mbarrier_uninitialised_good(const float *in, float *out) {
    __shared__ __align__(8) unsigned long long barrier;
    unsigned bar = static_cast<unsigned>(__cvta_generic_to_shared(&barrier));
    float v = in[threadIdx.x];
    if (threadIdx.x == 0) INIT(bar, 32);
    __syncthreads();
    ARRIVE(bar);
    out[threadIdx.x] = v;
}
