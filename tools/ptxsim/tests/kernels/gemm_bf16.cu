// C = A B, bf16 in, f32 accumulated and out, row-major: A is M x K, B is K x N.
// A block of 8 warps makes 128 x 128 of C, a warp 64 x 32 as 4 x 4 products m16n8k16. Tiles of 32 along K come by
// cp.async through a ring of STAGES buffers in dynamic shared memory. 16-byte chunks are XOR-swizzled so that the eight
// rows of an ldmatrix matrix lie on different banks. Rows that are no multiple of 8 elements, which cp.async cannot
// copy in chunks of 16 bytes, come by plain loads.

typedef unsigned short bf16;
typedef unsigned int u32;

#define BM 128
#define BN 128
#define BK 32
#ifndef STAGES
#define STAGES 3
#endif
#define A_BYTES (BM * BK * 2)
#define B_BYTES (BK * BN * 2)
#define STAGE_BYTES (A_BYTES + B_BYTES)

static __device__ __forceinline__ u32 shared_address(const void *p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

// Copies `bytes` (0 to 16) and fills up with zeros.
static __device__ __forceinline__ void copy_async(u32 to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> static __device__ __forceinline__ void wait_group() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

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

// Byte of a chunk of 8 elements. A has 4 chunks a row, two rows on the 128 bytes of all banks; B has 16 chunks a row.
static __device__ __forceinline__ u32 at_a(int row, int chunk) {
#ifdef NO_SWIZZLE
    return row * (BK * 2) + chunk * 16;
#else
    return row * (BK * 2) + ((chunk ^ (row >> 1)) & 3) * 16;
#endif
}

static __device__ __forceinline__ u32 at_b(int row, int chunk) {
#ifdef NO_SWIZZLE
    return row * (BN * 2) + chunk * 16;
#else
    return row * (BN * 2) + (chunk ^ (row & 7)) * 16;
#endif
}

// Eight elements of a row from column `column` on, zeros outside, to `to`.
static __device__ __forceinline__ void load8(unsigned char *to, const bf16 *matrix, int row, int rows, int column,
                                             int columns) {
    const int valid = row < rows ? min(max(columns - column, 0), 8) : 0;
    const bf16 *from = valid > 0 ? matrix + (size_t)row * columns + column : matrix;
    if ((columns & 7) == 0) {
        copy_async(shared_address(to), from, valid * 2);
    } else {
        u32 v[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < valid) v[i >> 1] |= static_cast<u32>(from[i]) << (i & 1) * 16;
        *reinterpret_cast<uint4 *>(to) = make_uint4(v[0], v[1], v[2], v[3]);
    }
}

static __device__ __forceinline__ void load_stage(unsigned char *stage, const bf16 *A, const bf16 *B, int M, int N,
                                                  int K, int m0, int n0, int k0) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = threadIdx.x + i * 256, row = at >> 2, chunk = at & 3;
        load8(stage + at_a(row, chunk), A, m0 + row, M, k0 + chunk * 8, K);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = threadIdx.x + i * 256, row = at >> 4, chunk = at & 15;
        load8(stage + A_BYTES + at_b(row, chunk), B, k0 + row, K, n0 + chunk * 8, N);
    }
}

extern "C" __global__ void __launch_bounds__(256, 1)
gemm_bf16(int M, int N, int K, const bf16 *__restrict__ A, const bf16 *__restrict__ B, float *__restrict__ C) {
    extern __shared__ __align__(128) unsigned char buffers[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    const int wm = (warp >> 2) * 64, wn = (warp & 3) * 32;
    const int tiles = (K + BK - 1) / BK;

    float acc[4][4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[i][j][e] = 0.0f;

    // A group is committed for every tile, an empty one beyond the last, so that the number to wait for stays the same.
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < tiles) load_stage(buffers + s * STAGE_BYTES, A, B, M, N, K, m0, n0, s * BK);
        commit();
    }

    for (int tile = 0; tile < tiles; tile++) {
        wait_group<STAGES - 2>();
        // This tile has come for every thread, and every warp is done with the buffer that is filled next.
        __syncthreads();
        const int ahead = tile + STAGES - 1;
        if (ahead < tiles)
            load_stage(buffers + (ahead % STAGES) * STAGE_BYTES, A, B, M, N, K, m0, n0, ahead * BK);
        commit();

        const unsigned char *stage = buffers + (tile % STAGES) * STAGE_BYTES;
#pragma unroll
        for (int k = 0; k < BK / 16; k++) {
            u32 a[4][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                ldmatrix(a[i], shared_address(stage + at_a(wm + i * 16 + (lane & 15), k * 2 + (lane >> 4))));
#pragma unroll
            for (int j = 0; j < 2; j++)
                ldmatrix_trans(b[j], shared_address(stage + A_BYTES +
                                                    at_b(k * 16 + (lane & 15), (wn >> 3) + j * 2 + (lane >> 4))));
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) mma(acc[i][j], a[i], b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1]);
        }
    }

#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int m = m0 + wm + i * 16 + h * 8 + (lane >> 2);
                const int n = n0 + wn + j * 8 + (lane & 3) * 2;
                if (m >= M || n >= N) continue;
                float *to = C + (size_t)m * N + n;
                if ((N & 1) == 0) {
                    *reinterpret_cast<float2 *>(to) = make_float2(acc[i][j][h * 2], acc[i][j][h * 2 + 1]);
                } else {
                    to[0] = acc[i][j][h * 2];
                    if (n + 1 < N) to[1] = acc[i][j][h * 2 + 1];
                }
            }
}
