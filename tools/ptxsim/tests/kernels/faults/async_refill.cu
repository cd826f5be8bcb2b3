// A buffer that is refilled before everybody has read it.
// RUN: --grid 1 --block 64 --arg buf:f32[2048]=iota --arg buf:f32[64]=uninit --arg i32:8

#define COPY16(to, from)                                                                                            \
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(                                                 \
                     static_cast<unsigned>(__cvta_generic_to_shared(to))),                                          \
                 "l"(from)                                                                                          \
                 : "memory")
#define COMMIT() asm volatile("cp.async.commit_group;" ::: "memory")
#define WAIT(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")

extern "C" __global__ void async_refill_bad(const float *in, float *out, int tiles) {
    __shared__ __align__(16) float tile[256];
    int t = threadIdx.x;
    float sum = 0.0f;
    COPY16(&tile[t * 4], in + t * 4);
    COMMIT();
#pragma unroll 1
    for (int k = 0; k < tiles; k++) {
        WAIT(0);
        __syncthreads();
        sum += tile[255 - t * 4]; // ALSO: shared_race, async_in_flight
        if (k + 1 < tiles) COPY16(&tile[t * 4], in + (k + 1) * 256 + t * 4); // FAULT: shared_race
        COMMIT();
    }
    out[t] = sum;
}

extern "C" __global__ void async_refill_good(const float *in, float *out, int tiles) {
    __shared__ __align__(16) float tile[256];
    int t = threadIdx.x;
    float sum = 0.0f;
    COPY16(&tile[t * 4], in + t * 4);
    COMMIT();
#pragma unroll 1
    for (int k = 0; k < tiles; k++) {
        WAIT(0);
        __syncthreads();
        sum += tile[255 - t * 4];
        __syncthreads();
        if (k + 1 < tiles) COPY16(&tile[t * 4], in + (k + 1) * 256 + t * 4);
        COMMIT();
    }
    out[t] = sum;
}
