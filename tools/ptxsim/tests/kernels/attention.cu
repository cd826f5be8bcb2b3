// softmax(Q K^T scale) V for heads of 64 channels, bf16 in, f32 accumulated and out, with the softmax kept online.
// Q is [heads][queries][64], K and V [heads][keys][64]. A block of 4 warps takes 64 queries of a head, a warp 16; keys
// come 64 at a time by cp.async: V while Q K^T is made, the next K while P V is. Chunks of 16 bytes are XOR-swizzled.

typedef unsigned short bf16;
typedef unsigned int u32;

#define D 64
#define BQ 64
#define BKEY 64
#define ROW_BYTES (D * 2)
#define MINUS_INFINITY __int_as_float(0xff800000)

static __device__ __forceinline__ u32 shared_address(const void *p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

static __device__ __forceinline__ void copy_async(u32 to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

static __device__ __forceinline__ void wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

static __device__ __forceinline__ void ldmatrix(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

static __device__ __forceinline__ void ldmatrix_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

static __device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats to bf16, the first in the low half.
static __device__ __forceinline__ u32 pack(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

static __device__ __forceinline__ float exp2_approx(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

static __device__ __forceinline__ u32 at(int row, int chunk) { return row * ROW_BYTES + (chunk ^ (row & 7)) * 16; }

// 64 rows of 64 channels, zeros beyond the last.
static __device__ __forceinline__ void load_tile(unsigned char *to, const bf16 *from, int row0, int rows) {
#pragma unroll
    for (int i = 0; i < 64 * 8 / 128; i++) {
        const int n = threadIdx.x + i * 128, row = n >> 3, chunk = n & 7;
        const bool inside = row0 + row < rows;
        copy_async(shared_address(to + at(row, chunk)), from + (inside ? (size_t)(row0 + row) * D + chunk * 8 : 0),
                   inside ? 16 : 0);
    }
}

extern "C" __global__ void __launch_bounds__(128)
attention(const bf16 *__restrict__ Q, const bf16 *__restrict__ K, const bf16 *__restrict__ V, float *__restrict__ O,
          int queries, int keys, float scale) {
    __shared__ __align__(128) unsigned char qs[BQ * ROW_BYTES], ks[BKEY * ROW_BYTES], vs[BKEY * ROW_BYTES];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int q0 = blockIdx.x * BQ;
    Q += (size_t)blockIdx.y * queries * D;
    K += (size_t)blockIdx.y * keys * D;
    V += (size_t)blockIdx.y * keys * D;
    O += (size_t)blockIdx.y * queries * D;
    const float scale2 = scale * 1.4426950408889634f;

    load_tile(qs, Q, q0, queries);
    load_tile(ks, K, 0, keys);
    commit();

    u32 q[4][4];
    float out[8][4], top[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) out[j][e] = 0.0f;

    for (int key0 = 0; key0 < keys; key0 += BKEY) {
        // K of this step (with the first one, Q) is there for everybody, and V of the step before is done with.
        wait_all();
        __syncthreads();
        load_tile(vs, V, key0, keys);
        commit();
        if (key0 == 0) {
#pragma unroll
            for (int k = 0; k < 4; k++)
                ldmatrix(q[k], shared_address(qs + at(warp * 16 + (lane & 15), k * 2 + (lane >> 4))));
        }

        float s[8][4];
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[j][e] = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                // Keys are rows here, so that the product's columns need no transposition.
                u32 b[4];
                const int row = j * 16 + (lane & 7) + (lane >> 4) * 8, chunk = k * 2 + ((lane >> 3) & 1);
                ldmatrix(b, shared_address(ks + at(row, chunk)));
                mma(s[j * 2], q[k], b[0], b[1]);
                mma(s[j * 2 + 1], q[k], b[2], b[3]);
            }

        // A lane has two rows, lane/4 and 8 below; the four lanes of a row share its maximum and sum.
        if (key0 + BKEY > keys) {
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (key0 + j * 8 + (lane & 3) * 2 + (e & 1) >= keys) s[j][e] = MINUS_INFINITY;
        }
        float shrink[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float m = top[h];
#pragma unroll
            for (int j = 0; j < 8; j++) m = fmaxf(m, fmaxf(s[j][h * 2], s[j][h * 2 + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            shrink[h] = exp2_approx((top[h] - m) * scale2);
            top[h] = m;
            float part = 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float p = exp2_approx((s[j][h * 2 + e] - m) * scale2);
                    s[j][h * 2 + e] = p;
                    part += p;
                }
            sum[h] = sum[h] * shrink[h] + part;
        }
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) out[j][e] *= shrink[e >> 1];

        // V is there for everybody, and K is done with.
        wait_all();
        __syncthreads();
        if (key0 + BKEY < keys) {
            load_tile(ks, K, key0 + BKEY, keys);
            commit();
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            // The accumulators of Q K^T are, in pairs, the first operand of P V.
            const u32 p[4] = {pack(s[k * 2][0], s[k * 2][1]), pack(s[k * 2][2], s[k * 2][3]),
                              pack(s[k * 2 + 1][0], s[k * 2 + 1][1]), pack(s[k * 2 + 1][2], s[k * 2 + 1][3])};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 b[4];
                ldmatrix_trans(b, shared_address(vs + at(k * 16 + (lane & 15), j * 2 + (lane >> 4))));
                mma(out[j * 2], p, b[0], b[1]);
                mma(out[j * 2 + 1], p, b[2], b[3]);
            }
        }
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        float total = sum[h];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        const float inverse = 1.0f / total;
        const int row = q0 + warp * 16 + h * 8 + (lane >> 2);
        if (row >= queries) continue;
#pragma unroll
        for (int j = 0; j < 8; j++)
            *reinterpret_cast<float2 *>(O + (size_t)row * D + j * 8 + (lane & 3) * 2) =
                make_float2(out[j][h * 2] * inverse, out[j][h * 2 + 1] * inverse);
    }
}
