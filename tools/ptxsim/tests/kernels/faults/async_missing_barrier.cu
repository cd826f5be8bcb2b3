// Each thread waits for its own copies, but nothing makes it wait for the others'.
// RUN: --grid 1 --block 64 --arg buf:f32[256]=iota --arg buf:f32[64]=uninit

#define COPY16(to, from)                                                                                            \
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(                                                 \
                     static_cast<unsigned>(__cvta_generic_to_shared(to))),                                          \
                 "l"(from)                                                                                          \
                 : "memory")
#define COMMIT() asm volatile("cp.async.commit_group;" ::: "memory")
#define WAIT(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")

extern "C" __global__ void async_missing_barrier_bad(const float *in, float *out) {
    __shared__ __align__(16) float tile[256];
    int t = threadIdx.x;
    tile[t * 4 + 3] = 0.0f;
    __syncthreads();
    COPY16(&tile[t * 4], in + t * 4); // ALSO: shared_race
    COMMIT();
    WAIT(0);
    float v = tile[255 - t * 4]; // FAULT: shared_race
    out[t] = v;
}

extern "C" __global__ void async_missing_barrier_good(const float *in, float *out) {
    __shared__ __align__(16) float tile[256];
    int t = threadIdx.x;
    tile[t * 4 + 3] = 0.0f;
    __syncthreads();
    COPY16(&tile[t * 4], in + t * 4);
    COMMIT();
    WAIT(0);
    __syncthreads();
    float v = tile[255 - t * 4];
    out[t] = v;
}
