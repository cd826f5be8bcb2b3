// An mbarrier that expects one arrival more than ever comes.
// RUN: --grid 1 --block 64 --arg buf:f32[64]=iota --arg buf:f32[64]=uninit

#define INIT(bar, count) asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory")
#define ARRIVE(bar) asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(bar) : "memory")
#define TEST(done, bar)                                                                                             \
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], 0; selp.b32 %0, 1, 0, p; }"         \
                 : "=r"(done)                                                                                       \
                 : "r"(bar)                                                                                         \
                 : "memory")

extern "C" __global__ void deadlock_mbarrier_bad(const float *in, float *out) {
    __shared__ __align__(8) unsigned long long barrier;
    __shared__ float tile[64];
    unsigned bar = static_cast<unsigned>(__cvta_generic_to_shared(&barrier));
    int t = threadIdx.x, done;
    if (t == 0) INIT(bar, 65);
    __syncthreads();
    tile[t] = in[t];
    ARRIVE(bar);
    do TEST(done, bar); while (!done); // FAULT: deadlock
    out[t] = tile[63 - t];
}

extern "C" __global__ void deadlock_mbarrier_good(const float *in, float *out) {
    __shared__ __align__(8) unsigned long long barrier;
    __shared__ float tile[64];
    unsigned bar = static_cast<unsigned>(__cvta_generic_to_shared(&barrier));
    int t = threadIdx.x, done;
    if (t == 0) INIT(bar, 64);
    __syncthreads();
    tile[t] = in[t];
    ARRIVE(bar);
    do TEST(done, bar); while (!done);
    out[t] = tile[63 - t];
}
