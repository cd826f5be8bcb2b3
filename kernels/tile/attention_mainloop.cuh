// Products of attention: a block holds ROWS (BM) rows of a head (queries, say) and passes over all rows of it (keys, say),
// COLUMNS (BN) at a time, which stream through a ring of two stages of shared memory.
//
//     scores       S[ROWS, COLUMNS] = L[ROWS, HEAD] R[COLUMNS, HEAD]'      L stays, R is a tile of the stream
//     accumulate   Y[ROWS, HEAD]   += P[ROWS, COLUMNS] R[COLUMNS, HEAD]    P never leaves the registers
//
//        block: ROWS x COLUMNS of S             a warp: MI bands of 16 rows, its own alone
//        +------------------------+             +--m16n8--+--m16n8--+ ..        lane l of a piece of 16 x 8 has
//        | warp 0: 16 MI rows     |             | c0 c1   |                     row l/4:     columns 2(l%4), + 1
//        | warp 1: ..             |             | c2 c3   |                     row l/4 + 8: the same
//        +------------------------+             +---------+
//
//        bf16: a piece of S, rounded, is half of the left operand of the next mma as it stands
//        f32:  a lane multiplies rows l/4, + 8, .. with its columns by fma; P goes around the four lanes of a row by shuffles.
//              Columns of Y: 16 i + 4(l%4) .. + 3 in pieces 2i (first two) and 2i + 1, so that R is read 16 bytes at a time
//
// A head has `dim` <= HEAD channels; the rest of a row of a tile is zeros, as are rows beyond the last token.
//
// Numerics: bf16 products are exact, tensor cores add them in f32; f32 by fma.
// Every sum is made by one thread in one order: the same bits in every run.
#pragma once
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "tile/smem_tile.cuh"
#include "tile/types.cuh"

// As in Rust: `attention::cuda::Params`.
struct AttentionParams {
    const T *qkv;     // [n, tokens, 3 heads dim]
    T *y;             // [n, tokens, heads dim]; written by the forward pass
    float *lse;       // [n, heads, padded]: log of the sum of exp of the scaled scores; written by the forward pass
    const T *gy;      // as y
    float *delta;     // as lse: rowsum(gy y); written by dq
    T *gqkv;          // as qkv
    int tokens, heads, dim;
    int padded;       // tokens, rounded up to a multiple of 64
    int which_step;   // from query to key to value of a head
    int head_step;    // from head to head
    float scale;
    int reserved;
};

namespace attention {

constexpr int ROWS = BM, COLUMNS = BN;
constexpr int THREADS = 32 * WARPS, MI = ROWS / (16 * WARPS), NJ = COLUMNS / 8, NH = HEAD / 8;
static_assert(MI * 16 * WARPS == ROWS && COLUMNS % 16 == 0 && HEAD % 32 == 0, "whole pieces");

typedef SmemTile<T, ROWS, HEAD> RowTile;
typedef SmemTile<T, COLUMNS, HEAD> ColumnTile;

typedef float Scores[MI][NJ][4];
typedef float Output[MI][NH][4];

constexpr float LOG2_E = 1.4426950408889634f;
// How far loops over copies are unrolled: not, where they go element by element.
constexpr int UNROLL = VEC ? 16 : 1;

static __device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// The block's head, and the first of its rows.
struct Place {
    int first;
    int qkv_pitch, y_pitch; // from token to token
    i64 qkv, y, vectors;    // first element of the head in qkv, in y, in lse and delta

    __device__ __forceinline__ explicit Place(const AttentionParams &p) {
        const int tiles = (p.tokens + ROWS - 1) / ROWS;
        const int tile = blockIdx.x % tiles, head = blockIdx.x / tiles % p.heads;
        const i64 sample = blockIdx.x / tiles / p.heads;
        first = tile * ROWS;
        vectors = (sample * p.heads + head) * p.padded;
        y_pitch = p.heads * p.dim, qkv_pitch = 3 * y_pitch;
        y = sample * p.tokens * y_pitch + head * p.dim;
        qkv = sample * p.tokens * qkv_pitch + static_cast<i64>(head) * p.head_step;
    }
};

// Begins the copy of `COUNT` rows from `first` on, `dim` channels each, to a tile. A thread has one place in every STEP-th row.
template <int COUNT>
static __device__ __forceinline__ void copy_rows(u8 *to, const T *from, int pitch, int first, int tokens, int dim) {
    typedef SmemTile<T, COUNT, HEAD> Tile;
    constexpr int E = VEC ? Chunk<T>::SIZE : 1, ACROSS = HEAD / E, STEP = THREADS / ACROSS;
    static_assert(THREADS % ACROSS == 0 && COUNT % STEP == 0, "whole rows and turns");
    const int row = threadIdx.x / ACROSS, column = threadIdx.x % ACROSS * E;
    const int there = column < dim ? tokens - first - row : 0;
    from += static_cast<i64>(first + row) * pitch + column;
#pragma unroll UNROLL
    for (int i = 0; i < COUNT; i += STEP)
        copy_to_shared<T, E>(to + Tile::element(row + i, column), from + static_cast<i64>(i) * pitch, i < there);
}

// Begins the copy of COUNT floats, a multiple of 4; `from` is aligned to 16 bytes.
template <int COUNT> static __device__ __forceinline__ void copy_vector(float *to, const float *from) {
    static_assert(COUNT % 4 == 0 && COUNT / 4 <= THREADS, "a turn of the block");
    if (threadIdx.x < COUNT / 4) ptx::cp_async<16>(ptx::shared_address(to + threadIdx.x * 4), from + threadIdx.x * 4, true);
}

#if T_BF16

// Rows of a warp as the left operand; KEEP holds them in registers.
template <bool KEEP> struct LeftRows {
    u32 row, chunk;
    u32 kept[KEEP ? HEAD / 16 : 1][MI][4];

    // The tile is in place.
    __device__ __forceinline__ LeftRows(const u8 *tile, int warp, int lane) {
        const int r = warp * MI * 16 + (lane & 15);
        row = ptx::shared_address(tile) + r * RowTile::ROW_BYTES, chunk = ((lane >> 4) ^ RowTile::twist(r)) << 4;
        if constexpr (KEEP) {
#pragma unroll
            for (int step = 0; step < HEAD / 16; step++)
#pragma unroll
                for (int i = 0; i < MI; i++) read(kept[step][i], i, step);
        }
    }

    __device__ __forceinline__ void read(u32 (&a)[4], int i, int step) const {
        ptx::ldmatrix_x4(a, row + i * 16 * RowTile::ROW_BYTES + (chunk ^ (step * 32)));
    }
};

// S = L R'.
template <bool KEEP>
static __device__ __forceinline__ void scores(Scores &s, const LeftRows<KEEP> &left, const u8 *tile, int lane) {
    const int row = (lane & 7) + (lane >> 4) * 8;
    const u32 base = ptx::shared_address(tile) + row * ColumnTile::ROW_BYTES;
    const u32 chunk = ((lane >> 3 & 1) ^ ColumnTile::twist(row)) << 4;
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NJ; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[i][j][e] = 0.0f;
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++) {
        u32 a[MI][4];
#pragma unroll
        for (int i = 0; i < MI; i++) {
            if constexpr (KEEP) {
#pragma unroll
                for (int e = 0; e < 4; e++) a[i][e] = left.kept[step][i][e];
            } else {
                left.read(a[i], i, step);
            }
        }
#pragma unroll
        for (int j = 0; j < NJ; j += 2) {
            u32 b[4];
            ptx::ldmatrix_x4(b, base + j * 8 * ColumnTile::ROW_BYTES + (chunk ^ (step * 32)));
#pragma unroll
            for (int i = 0; i < MI; i++) {
                ptx::mma_m16n8k16_bf16(s[i][j], a[i], b[0], b[1]);
                ptx::mma_m16n8k16_bf16(s[i][j + 1], a[i], b[2], b[3]);
            }
        }
    }
}

// Y += P R, P rounded to bf16.
static __device__ __forceinline__ void accumulate(Output &y, const Scores &p, const u8 *tile, int lane) {
    const int row = lane & 15;
    const u32 base = ptx::shared_address(tile) + row * ColumnTile::ROW_BYTES;
    const u32 chunk = ((lane >> 4) ^ ColumnTile::twist(row)) << 4;
#pragma unroll
    for (int k = 0; k < NJ; k += 2) {
        u32 a[MI][4];
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                a[i][e] = ptx::pack_bf16x2(p[i][k + e / 2][e % 2 * 2], p[i][k + e / 2][e % 2 * 2 + 1]);
#pragma unroll
        for (int j = 0; j < NH; j += 2) {
            u32 b[4];
            ptx::ldmatrix_x4_trans(b, base + k * 8 * ColumnTile::ROW_BYTES + (chunk ^ (j * 16)));
#pragma unroll
            for (int i = 0; i < MI; i++) {
                ptx::mma_m16n8k16_bf16(y[i][j], a[i], b[0], b[1]);
                ptx::mma_m16n8k16_bf16(y[i][j + 1], a[i], b[2], b[3]);
            }
        }
    }
}

#else

// Rows of a warp as the left operand; they stay in shared memory.
template <bool KEEP> struct LeftRows {
    const u8 *row;
    u32 twist;

    __device__ __forceinline__ LeftRows(const u8 *tile, int warp, int lane) {
        const int r = warp * MI * 16 + (lane >> 2);
        row = tile + r * RowTile::ROW_BYTES, twist = RowTile::twist(r) << 4;
    }

    // Four channels of row l/4 + 8 `eighth`.
    __device__ __forceinline__ float4 read(int eighth, int step) const {
        return *reinterpret_cast<const float4 *>(row + eighth * 8 * RowTile::ROW_BYTES + (twist ^ (step << 4)));
    }
};

// S = L R'.
template <bool KEEP>
static __device__ __forceinline__ void scores(Scores &s, const LeftRows<KEEP> &left, const u8 *tile, int lane) {
    const int even = (lane & 3) * 2;
    const u8 *base = tile + even * ColumnTile::ROW_BYTES;
    const u32 twist[2] = {static_cast<u32>(ColumnTile::twist(even)) << 4, static_cast<u32>(ColumnTile::twist(even + 1)) << 4};
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NJ; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[i][j][e] = 0.0f;
#pragma unroll 1
    for (int step = 0; step < HEAD / 4; step++) {
        float4 a[2 * MI];
#pragma unroll
        for (int i = 0; i < 2 * MI; i++) a[i] = left.read(i, step);
#pragma unroll
        for (int j = 0; j < NJ; j++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const float4 b = *reinterpret_cast<const float4 *>(base + (8 * j + c) * ColumnTile::ROW_BYTES +
                                                                   (twist[c] ^ (step << 4)));
#pragma unroll
                for (int i = 0; i < 2 * MI; i++) {
                    float &sum = s[i / 2][j][i % 2 * 2 + c];
                    sum = fmaf(a[i].x, b.x, sum), sum = fmaf(a[i].y, b.y, sum);
                    sum = fmaf(a[i].z, b.z, sum), sum = fmaf(a[i].w, b.w, sum);
                }
            }
    }
}

// Y += P R. Of every eight columns the first two, which are with the first lane of a row, then the next two, ..
static __device__ __forceinline__ void accumulate(Output &y, const Scores &p, const u8 *tile, int lane) {
    const int part = lane & 3;
#pragma unroll 1
    for (int source = 0; source < 4; source++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int eighth = 2 * source + c, twist = ColumnTile::twist(eighth);
            const u8 *const base = tile + eighth * ColumnTile::ROW_BYTES;
#pragma unroll
            for (int j = 0; j < NJ; j++) {
                float weight[2 * MI];
#pragma unroll
                for (int i = 0; i < 2 * MI; i++) weight[i] = __shfl_sync(~0u, p[i / 2][j][i % 2 * 2 + c], source, 4);
#pragma unroll
                for (int g = 0; g < HEAD / 16; g++) {
                    const float4 v = *reinterpret_cast<const float4 *>(base + j * 8 * ColumnTile::ROW_BYTES +
                                                                       (((4 * g + part) ^ twist) << 4));
#pragma unroll
                    for (int i = 0; i < 2 * MI; i++) {
                        float(&first)[4] = y[i / 2][2 * g], (&second)[4] = y[i / 2][2 * g + 1];
                        const int h = i % 2 * 2;
                        first[h] = fmaf(weight[i], v.x, first[h]), first[h + 1] = fmaf(weight[i], v.y, first[h + 1]);
                        second[h] = fmaf(weight[i], v.z, second[h]), second[h + 1] = fmaf(weight[i], v.w, second[h + 1]);
                    }
                }
            }
        }
}

#endif

static __device__ __forceinline__ void clear(Output &y) {
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NH; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) y[i][j][e] = 0.0f;
}

// Writes a warp's rows of Y, multiplied by `factor` (one for each of its rows l/4 + 8 i), by way of its rows of `tile`, which
// only this warp has read.
static __device__ __forceinline__ void store_rows(const Output &y, const float (&factor)[2 * MI], u8 *tile, T *to, int pitch,
                                                  int first, int tokens, int dim, int warp, int lane) {
    const int top = warp * MI * 16;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2 * MI; i++) {
        const int row = top + i * 8 + (lane >> 2);
        const float f = factor[i];
#if T_BF16
#pragma unroll
        for (int j = 0; j < NH; j++)
            *reinterpret_cast<u32 *>(tile + RowTile::at(row, j) + (lane & 3) * 4) =
                ptx::pack_bf16x2(y[i / 2][j][i % 2 * 2] * f, y[i / 2][j][i % 2 * 2 + 1] * f);
#else
#pragma unroll
        for (int g = 0; g < HEAD / 16; g++) {
            const float(&a)[4] = y[i / 2][2 * g], (&b)[4] = y[i / 2][2 * g + 1];
            const int h = i % 2 * 2;
            *reinterpret_cast<float4 *>(tile + RowTile::at(row, 4 * g + (lane & 3))) =
                make_float4(a[h] * f, a[h + 1] * f, b[h] * f, b[h + 1] * f);
        }
#endif
    }
    __syncwarp();
    constexpr int E = VEC ? Chunk<T>::SIZE : 1, ACROSS = HEAD / E;
#pragma unroll UNROLL
    for (int i = lane; i < MI * 16 * ACROSS; i += 32) {
        const int row = top + i / ACROSS, column = i % ACROSS * E;
        if (first + row >= tokens || column >= dim) continue;
        const u8 *from = tile + RowTile::element(row, column);
        T *at = to + static_cast<i64>(first + row) * pitch + column;
        if constexpr (VEC)
            ptx::store_global_16(at, *reinterpret_cast<const uint4 *>(from));
        else
            *at = *reinterpret_cast<const T *>(from);
    }
}

} // namespace attention
