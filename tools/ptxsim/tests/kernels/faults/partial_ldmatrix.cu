// ldmatrix by half a warp.
// RUN: --grid 1 --block 32 --arg buf:u32[64]=iota --arg buf:u32[64]=uninit

#define LDMATRIX(r0, r1, from)                                                                                      \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"                                         \
                 : "=r"(r0), "=r"(r1)                                                                               \
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(from)))                                       \
                 : "memory")

extern "C" __global__ void partial_ldmatrix_bad(const unsigned *in, unsigned *out) {
    __shared__ __align__(16) unsigned tile[64];
    int t = threadIdx.x;
    tile[t] = in[t];
    tile[t + 32] = in[t + 32];
    __syncthreads();
    if (t < 16) {
        unsigned a, b;
        LDMATRIX(a, b, &tile[t * 4]); // FAULT: partial_warp
        out[t] = a;
        out[t + 32] = b;
    }
}

extern "C" __global__ void partial_ldmatrix_good(const unsigned *in, unsigned *out) {
    __shared__ __align__(16) unsigned tile[64];
    int t = threadIdx.x;
    tile[t] = in[t];
    tile[t + 32] = in[t + 32];
    __syncthreads();
    unsigned a, b;
    LDMATRIX(a, b, &tile[(t & 15) * 4]);
    out[t] = a;
    out[t + 32] = b;
}
