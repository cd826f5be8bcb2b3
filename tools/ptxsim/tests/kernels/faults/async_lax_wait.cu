// Two tiles ahead: the wait lets one group more in flight than it may.
// RUN: --grid 1 --block 64 --arg buf:f32[2048]=iota --arg buf:f32[64]=uninit --arg i32:8

#define COPY16(to, from)                                                                                            \
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(                                                 \
                     static_cast<unsigned>(__cvta_generic_to_shared(to))),                                          \
                 "l"(from)                                                                                          \
                 : "memory")
#define COMMIT() asm volatile("cp.async.commit_group;" ::: "memory")
#define WAIT(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")

extern "C" __global__ void async_lax_wait_bad(const float *in, float *out, int tiles) {
    __shared__ __align__(16) float tile[3][256];
    int t = threadIdx.x;
    float sum = 0.0f;
    for (int k = 0; k < 2; k++) {
        COPY16(&tile[k][t * 4], in + k * 256 + t * 4);
        COMMIT();
    }
#pragma unroll 1
    for (int k = 0; k < tiles; k++) {
        WAIT(2);
        __syncthreads();
        sum += tile[k % 3][255 - t * 4]; // FAULT: async_in_flight // ALSO: shared_race
        if (k + 2 < tiles) COPY16(&tile[(k + 2) % 3][t * 4], in + (k + 2) * 256 + t * 4);
        COMMIT();
    }
    out[t] = sum;
    WAIT(0);
}

extern "C" __global__ void async_lax_wait_good(const float *in, float *out, int tiles) {
    __shared__ __align__(16) float tile[3][256];
    int t = threadIdx.x;
    float sum = 0.0f;
    for (int k = 0; k < 2; k++) {
        COPY16(&tile[k][t * 4], in + k * 256 + t * 4);
        COMMIT();
    }
#pragma unroll 1
    for (int k = 0; k < tiles; k++) {
        WAIT(1);
        __syncthreads();
        sum += tile[k % 3][255 - t * 4];
        if (k + 2 < tiles) COPY16(&tile[(k + 2) % 3][t * 4], in + (k + 2) * 256 + t * 4);
        COMMIT();
    }
    out[t] = sum;
}
