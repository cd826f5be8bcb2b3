// mma by the lanes whose rows are inside.
// RUN: --grid 1 --block 32 --arg buf:u32[32]=zeros --arg buf:f32[128]=uninit --arg i32:20

#define MMA(c, a, b)                                                                                                \
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "            \
                 "{%0, %1, %2, %3};"                                                                                \
                 : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w)                                                       \
                 : "r"(a), "r"(a), "r"(b))

extern "C" __global__ void partial_mma_bad(const unsigned *in, float4 *out, int n) {
    int t = threadIdx.x;
    unsigned a = in[t], b = in[31 - t];
    float4 c = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (t < n) {
        MMA(c, a, b); // FAULT: partial_warp
    }
    out[t] = c;
}

extern "C" __global__ void partial_mma_good(const unsigned *in, float4 *out, int n) {
    int t = threadIdx.x;
    unsigned a = t < n ? in[t] : 0, b = in[31 - t];
    float4 c = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    MMA(c, a, b);
    out[t] = c;
}
