// The inner loop of all matrix products: a block's tile C[BM, BN] += A[BM, K] B[K, BN], K in steps of BK.
//
//     global --cp.async--> ring of STAGES shared tiles --ldmatrix / vector loads--> registers --mma / fma--> C
//
//        step k:  |load k+S-1 ......................|             S = STAGES; S-1 steps are on their way
//                 |frag 1|frag 2|..|wait, barrier|frag 0 of k+1|  fragments are loaded one substep ahead,
//                 |mma 0 |mma 1 |..|mma last ...................|  across the barrier too, so that mma never waits
//
//        block BM x BN            warp WM x WN (bf16)               warp WM x WN (f32)
//        +----+----+----+----+    +--m16n8--+--m16n8--+ ..          lanes 8 (m) x 4 (n), each with
//        | w0 | w1 | w2 | w3 |    | c0 c1   |                       TM = WM/8 rows and TN = WN/4 columns
//        +----+----+----+----+    | c2 c3   |                       in registers
//        | w4 | w5 | w6 | w7 |    +---------+
//        +----+----+----+----+
//
// An operand lies in shared memory k-major (rows m or n, k along the row) or mn-major (rows k, m or n along the row),
// as it lies in global memory; ldmatrix.trans turns the latter. Both kinds are SmemTiles.
//
// Numerics: bf16 products are exact, tensor cores add them in f32; f32 operands are multiplied and added by fma in the
// order of k. Every element of C is summed by one thread in one order: the same bits at every run.
#pragma once
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "tile/smem_tile.cuh"
#include "tile/types.cuh"

enum Major { K_MAJOR, MN_MAJOR };

constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN, WARPS = WARPS_M * WARPS_N, THREADS = WARPS * 32;
static_assert(BM % WM == 0 && BN % WN == 0, "warps fill the block's tile");

template <Major MAJOR, int MN> struct OperandTile;
template <int MN> struct OperandTile<K_MAJOR, MN> : SmemTile<T, MN, BK> {};
template <int MN> struct OperandTile<MN_MAJOR, MN> : SmemTile<T, BK, MN> {};

#if T_BF16

// Fragments of tensor cores. K of one substep.
constexpr int SUB_K = 16;

template <Major MAJOR_A, Major MAJOR_B> struct WarpProduct {
    typedef OperandTile<MAJOR_A, BM> TileA;
    typedef OperandTile<MAJOR_B, BN> TileB;
    static constexpr int MI = WM / 16, NI = WN / 8;
    // Rows of C that the epilogue takes at a time.
    static constexpr int STRIP = 16;
    static_assert(WM % 16 == 0 && WN % 16 == 0 && BK % 32 == 0, "whole fragments, and an even number of substeps");

    struct Fragments {
        u32 a[MI][4];
        u32 b[NI / 2][4];
    };

    float acc[MI][NI][4];
    // Byte of this lane's first row in a tile, and its chunk there. All other addresses follow by constants: rows of
    // further fragments by their distance, chunks by XOR, as the distances are multiples of what the twist sees.
    u32 row_a, chunk_a, row_b, chunk_b;

    __device__ __forceinline__ WarpProduct(int warp, int lane) {
        const int wm = warp / WARPS_N * WM, wn = warp % WARPS_N * WN;
        // k-major A: matrices (m, k), (m+8, k), (m, k+8), (m+8, k+8). mn-major A: the same, rows are k.
        if (MAJOR_A == K_MAJOR) {
            const int row = wm + (lane & 15);
            row_a = row * TileA::ROW_BYTES, chunk_a = ((lane >> 4) ^ TileA::twist(row)) << 4;
        } else {
            const int row = (lane & 7) + (lane >> 4) * 8;
            row_a = row * TileA::ROW_BYTES, chunk_a = ((wm / 8 + (lane >> 3 & 1)) ^ TileA::twist(row)) << 4;
        }
        // k-major B: matrices (n, k), (n, k+8), (n+8, k), (n+8, k+8). mn-major B: the same, rows are k.
        if (MAJOR_B == K_MAJOR) {
            const int row = wn + (lane & 7) + (lane >> 4) * 8;
            row_b = row * TileB::ROW_BYTES, chunk_b = ((lane >> 3 & 1) ^ TileB::twist(row)) << 4;
        } else {
            const int row = lane & 15;
            row_b = row * TileB::ROW_BYTES, chunk_b = ((wn / 8 + (lane >> 4)) ^ TileB::twist(row)) << 4;
        }
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int j = 0; j < NI; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) acc[i][j][e] = 0.0f;
    }

    // Loads the fragments of substep `sub` from the stage at shared address `stage`.
    __device__ __forceinline__ void load(Fragments &f, u32 stage, int sub) const {
#pragma unroll
        for (int i = 0; i < MI; i++) {
            if (MAJOR_A == K_MAJOR)
                ptx::ldmatrix_x4(f.a[i], stage + row_a + i * 16 * TileA::ROW_BYTES + (chunk_a ^ (sub * 32)));
            else
                ptx::ldmatrix_x4_trans(f.a[i], stage + row_a + sub * 16 * TileA::ROW_BYTES + (chunk_a ^ (i * 32)));
        }
        const u32 stage_b = stage + TileA::BYTES;
#pragma unroll
        for (int j = 0; j < NI / 2; j++) {
            if (MAJOR_B == K_MAJOR)
                ptx::ldmatrix_x4(f.b[j], stage_b + row_b + j * 16 * TileB::ROW_BYTES + (chunk_b ^ (sub * 32)));
            else
                ptx::ldmatrix_x4_trans(f.b[j], stage_b + row_b + sub * 16 * TileB::ROW_BYTES + (chunk_b ^ (j * 32)));
        }
    }

    __device__ __forceinline__ void multiply(const Fragments &f) {
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int j = 0; j < NI; j++)
                ptx::mma_m16n8k16_bf16(acc[i][j], f.a[i], f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]);
    }

    // Writes strip `s` (16 rows) of the warp's part of C to rows of `pitch` floats.
    __device__ __forceinline__ void stage_strip(float *to, int pitch, int s, int lane) const {
#pragma unroll
        for (int j = 0; j < NI; j++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *reinterpret_cast<float2 *>(to + (h * 8 + (lane >> 2)) * pitch + j * 8 + (lane & 3) * 2) =
                    make_float2(acc[s][j][h * 2], acc[s][j][h * 2 + 1]);
    }
};

#else

constexpr int SUB_K = 4;

template <Major MAJOR_A, Major MAJOR_B> struct WarpProduct {
    typedef OperandTile<MAJOR_A, BM> TileA;
    typedef OperandTile<MAJOR_B, BN> TileB;
    static constexpr int TM = WM / 8, TN = WN / 4;
    static constexpr int STRIP = 32;
    static_assert(TM % 4 == 0 && TN % 4 == 0 && BK % 8 == 0, "whole vectors, and an even number of substeps");

    // Four values of k of TM rows of A and TN columns of B.
    struct Fragments {
        float a[TM][4];
        float b[TN][4];
    };

    float acc[TM][TN];
    u32 row_a, chunk_a, row_b, chunk_b;

    // Rows of lane `lm` are lm, lm+8, .. of a k-major A, and 4 lm .. 4 lm + 3, then 32 on, of an mn-major one.
    static __device__ __forceinline__ int row(int lm, int i) {
        return MAJOR_A == K_MAJOR ? lm + 8 * i : i / 4 * 32 + lm * 4 + i % 4;
    }
    static __device__ __forceinline__ int column(int ln, int j) {
        return MAJOR_B == K_MAJOR ? ln + 4 * j : j / 4 * 16 + ln * 4 + j % 4;
    }

    __device__ __forceinline__ WarpProduct(int warp, int lane) {
        const int lm = lane % 8, ln = lane / 8;
        const int wm = warp / WARPS_N * WM, wn = warp % WARPS_N * WN;
        row_a = MAJOR_A == K_MAJOR ? (wm + lm) * TileA::ROW_BYTES : 0;
        chunk_a = MAJOR_A == K_MAJOR ? TileA::twist(lm) << 4 : (wm / 4 + lm) << 4;
        row_b = MAJOR_B == K_MAJOR ? (wn + ln) * TileB::ROW_BYTES : 0;
        chunk_b = MAJOR_B == K_MAJOR ? TileB::twist(ln) << 4 : (wn / 4 + ln) << 4;
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) acc[i][j] = 0.0f;
    }

    // COUNT rows (or columns) of four k each. Lanes that lie side by side along mn are STEP rows apart.
    template <Major MAJOR, typename Tile, int COUNT, int LANES>
    static __device__ __forceinline__ void load_operand(float (&v)[COUNT][4], const u8 *tile, u32 row, u32 chunk,
                                                        int sub) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (MAJOR == K_MAJOR) {
                // Rows LANES apart: the twist changes with them where LANES is not a multiple of 8.
                const int turn = (Tile::twist(i * LANES % 8) << 4) ^ (sub << 4);
                const float4 k = *reinterpret_cast<const float4 *>(tile + row + i * LANES * Tile::ROW_BYTES +
                                                                   (chunk ^ turn));
                v[i][0] = k.x, v[i][1] = k.y, v[i][2] = k.z, v[i][3] = k.w;
            } else {
                // Four rows of k; lane `l` has chunk l, l + LANES, ..
                const int k = sub * 4 + i % 4;
                const u32 at = (chunk + i / 4 * LANES * 16) ^ (Tile::twist(k) << 4);
                const float4 mn = *reinterpret_cast<const float4 *>(tile + k * Tile::ROW_BYTES + at);
                v[i / 4 * 4][i % 4] = mn.x, v[i / 4 * 4 + 1][i % 4] = mn.y;
                v[i / 4 * 4 + 2][i % 4] = mn.z, v[i / 4 * 4 + 3][i % 4] = mn.w;
            }
        }
    }

    __device__ __forceinline__ void load(Fragments &f, const u8 *stage, int sub) const {
        load_operand<MAJOR_A, TileA, TM, 8>(f.a, stage, row_a, chunk_a, sub);
        load_operand<MAJOR_B, TileB, TN, 4>(f.b, stage + TileA::BYTES, row_b, chunk_b, sub);
    }

    __device__ __forceinline__ void multiply(const Fragments &f) {
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) acc[i][j] = fmaf(f.a[i][k], f.b[j][k], acc[i][j]);
    }

    // Writes strip `s` (32 rows) of the warp's part of C to rows of `pitch` floats.
    __device__ __forceinline__ void stage_strip(float *to, int pitch, int s, int lane) const {
        const int lm = lane % 8, ln = lane / 8;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) to[row(lm, i) * pitch + column(ln, j)] = acc[s * 4 + i][j];
    }
};

#endif

// Runs the pipeline over `steps` steps of K. `loader(stage)` begins the copies of its next step to the stage at that
// address; it is called `steps` times, in order. Afterwards nothing is on its way and no warp reads shared memory.
template <Major MAJOR_A, Major MAJOR_B, typename Loader>
static __device__ __forceinline__ void gemm_mainloop(WarpProduct<MAJOR_A, MAJOR_B> &product, Loader &loader, u8 *shared,
                                                     int steps) {
    typedef WarpProduct<MAJOR_A, MAJOR_B> Product;
    constexpr int STAGE_BYTES = Product::TileA::BYTES + Product::TileB::BYTES;
    constexpr int SUBS = BK / SUB_K;
    static_assert(SUBS % 2 == 0 && STAGES >= 2, "fragments alternate between two buffers");
    // ldmatrix takes 32-bit shared addresses, vector loads pointers.
#if T_BF16
    const u32 base = ptx::shared_address(shared);
#else
    const u8 *base = shared;
#endif
    // A group is committed for every step, an empty one beyond the last: the number to wait for stays the same.
#pragma unroll 1
    for (int loaded = 0; loaded < STAGES - 1; loaded++) {
        if (loaded < steps) loader.load(shared + loaded * STAGE_BYTES);
        ptx::cp_async_commit();
    }
    if (steps > 0) {
        typename Product::Fragments f[2];
        int slot = 0, fill = STAGES - 1;
        ptx::cp_async_wait<STAGES - 2>();
        __syncthreads();
        product.load(f[0], base, 0);
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
#pragma unroll
            for (int sub = 0; sub < SUBS; sub++) {
                if (sub == 0) {
                    // Every warp has read the last fragments of the step before: its slot is free.
                    if (step + STAGES - 1 < steps) loader.load(shared + fill * STAGE_BYTES);
                    ptx::cp_async_commit();
                    fill = fill + 1 == STAGES ? 0 : fill + 1;
                }
                if (sub == SUBS - 1) {
                    slot = slot + 1 == STAGES ? 0 : slot + 1;
                    ptx::cp_async_wait<STAGES - 2>();
                    __syncthreads();
                }
                if (sub < SUBS - 1 || step + 1 < steps)
                    product.load(f[(sub + 1) % 2], base + slot * STAGE_BYTES, (sub + 1) % SUBS);
                product.multiply(f[sub % 2]);
            }
        }
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
}
