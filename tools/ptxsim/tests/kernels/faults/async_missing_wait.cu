// A tile is read while cp.async still brings it.
// RUN: --grid 1 --block 32 --arg buf:f32[128]=iota --arg buf:f32[128]=uninit

#define COPY16(to, from)                                                                                            \
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(                                                 \
                     static_cast<unsigned>(__cvta_generic_to_shared(to))),                                          \
                 "l"(from)                                                                                          \
                 : "memory")
#define COMMIT() asm volatile("cp.async.commit_group;" ::: "memory")
#define WAIT(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")

extern "C" __global__ void async_missing_wait_bad(const float *in, float *out) {
    __shared__ __align__(16) float tile[128];
    int t = threadIdx.x;
    COPY16(&tile[t * 4], in + t * 4);
    COMMIT();
    __syncthreads();
    float v = tile[t * 4]; // FAULT: async_in_flight
    out[t] = v;
    WAIT(0);
}

extern "C" __global__ void async_missing_wait_good(const float *in, float *out) {
    __shared__ __align__(16) float tile[128];
    int t = threadIdx.x;
    COPY16(&tile[t * 4], in + t * 4);
    COMMIT();
    WAIT(0);
    __syncthreads();
    float v = tile[t * 4];
    out[t] = v;
}
