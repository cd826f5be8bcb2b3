// A tile is read while a bulk copy still brings it: nobody waits for the mbarrier that the copy completes.
// ARCH: compute_90a
// RUN: --grid 2 --block 64 --arg buf:f32[256]=iota --arg buf:f32[256]=uninit

#define ADDRESS(p) static_cast<unsigned>(__cvta_generic_to_shared(p))
#define INIT(bar, count)                                                                                            \
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1; fence.mbarrier_init.release.cluster;" ::"r"(bar),         \
                 "r"(count)                                                                                         \
                 : "memory")
#define EXPECT(bar, bytes)                                                                                          \
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory")
#define BULK(to, from, bytes, bar)                                                                                  \
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(   \
                     ADDRESS(to)),                                                                                  \
                 "l"(from), "r"(bytes), "r"(bar)                                                                    \
                 : "memory")
#define TRY(done, bar)                                                                                              \
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.b32 %0, 1, 0, p; }"     \
                 : "=r"(done)                                                                                       \
                 : "r"(bar)                                                                                         \
                 : "memory")

extern "C" __global__ void bulk_missing_wait_bad(const float *in, float *out) {
    __shared__ __align__(128) float tile[128];
    __shared__ __align__(8) unsigned long long barrier;
    unsigned bar = ADDRESS(&barrier);
    int t = threadIdx.x, done;
    if (t == 0) INIT(bar, 1);
    __syncthreads();
    if (t == 0) {
        EXPECT(bar, 512);
        BULK(tile, in + blockIdx.x * 128, 512, bar);
    }
    __syncthreads();
    float v = tile[t] + tile[127 - t]; // FAULT: async_in_flight
    out[blockIdx.x * 128 + t] = v;
    do TRY(done, bar); while (!done);
}

extern "C" __global__ void bulk_missing_wait_good(const float *in, float *out) {
    __shared__ __align__(128) float tile[128];
    __shared__ __align__(8) unsigned long long barrier;
    unsigned bar = ADDRESS(&barrier);
    int t = threadIdx.x, done;
    if (t == 0) INIT(bar, 1);
    __syncthreads();
    if (t == 0) {
        EXPECT(bar, 512);
        BULK(tile, in + blockIdx.x * 128, 512, bar);
    }
    do TRY(done, bar); while (!done);
    float v = tile[t] + tile[127 - t];
    out[blockIdx.x * 128 + t] = v;
}
