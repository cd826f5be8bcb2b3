// Depthwise 7x7 convolution of bf16 on tensor cores, stride 1, no dilation.
//
// Maths, for every channel alone:
//
//     fwd     y[i, j]  = bias + sum over r, s of x[i + r - pad, j + s - pad] * w[r, s]
//     dgrad   the same with x = dy, w turned by half a turn, pad' = 6 - pad
//     wgrad   dw[r, s] = sum over i, j of dy[i, j] * x[i + r - pad, j + s - pad]
//
// A sum along a row is a product with a banded matrix, B[j + s, j] = w[r, s]; that is what a tensor core can do. 7 of 16
// rows of the band are not zero, so 2.6 times the useful products are made, on units that are 16 times as fast.
//
// Memory: x [n, h, w, c], y [n, ho, wo, c], w [c, 7, 7], all bf16; c a multiple of 8; bias [c] f32 or null; wgrad writes f32
// [gridDim.y, c, 7, 7], which conv2d_depthwise_wgrad_reduce adds up. 16 bytes, an octet, are 8 channels of a pixel.
//
//     grid.x: 32 channels    grid.y: workers, each with the units number y, y + gridDim.y, ..
//     unit: 16x16 outputs of an image (SPAN 16), or two of 8x8 for small maps (SPAN 8)
//     warp: one octet of the unit
//
//     fwd, shared memory of an octet: a plane of 22x22 pixels
//
//                    columns: pixel t + 4k of lane t            m16n8k16, once a channel and q = 0..7:
//          row 2n+q  [ t  t+4 | t+8  t+12 ]  8 more for the       A[m < 8, k] = w[q, k - m]      output row 2n
//                      b0        b1          right half           A[m >= 8, k] = w[q - 1, k - m] output row 2n + 1
//                                                                 B[k, n] = x[2n + q, k]         D[m, n]
//
//     Any order of k will do as long as A and B agree: with columns t, t + 4, .. the eight lanes of a phase read eight different
//     16-byte banks. Two pixels become a register for each of the eight channels by a byte permutation. The weights are
//     an image row with zeros on both sides, read like pixels.
//
//     wgrad: rows 2i and 2i + 1 of x against the eight rows of dy that they meet
//
//          A[(p, s), k] = x[2i + p, k + s]    B[k, n] = dy[2i + 1 + pad - n, k]    D[(p, s), n] belongs to r = n + p - 1
//
// Numerics: products of bf16 are exact, sums f32 in the tensor core's order; y and dx are rounded once; `=`. wgrad adds units in
// the order of their numbers, then workers in theirs: the same bits in every run. A band's zeros are multiplied too:
// an infinity or NaN in x reaches the outputs of the eight columns and two rows that share its product, not only those
// under the kernel.
//
// Limits (H100, predicted; simulated only): fwd and dgrad move 4 bytes an element, 0.84e12 elements/s at 3.35 TB/s. Shared memory
// gives 6.4 elements a clock and multiprocessor, 1.5e12/s; instructions 2.1e12/s; the halo makes 1.9 times the reads in the
// second-level cache. So memory bounds it, where 49 FMA an element in f32 would allow 0.6e12/s. wgrad reads 4 bytes an
// element; shared memory allows 1.2e12/s.
#include "ptx/cp_async.cuh"
#include "ptx/mma.cuh"
#include "tile/depthwise.cuh"

#ifndef SPAN
#define SPAN 16
#endif
static_assert(T_BF16, "tensor cores multiply bf16");
static_assert(SPAN == 16 || SPAN == 8, "a unit is 16x16 or 8x8");

namespace {

constexpr int K = 7, TAPS = K * K, WARPS = 4, THREADS = 32 * WARPS, OCTETS = depthwise::CHANNELS / 8;
static_assert(OCTETS == WARPS, "a warp has eight channels");
constexpr int UNITS = SPAN == 16 ? 1 : 2;
// Blocks of a multiprocessor that registers must allow; three of 16x16 would spill on sm_90.
constexpr int BLOCKS = SPAN == 16 ? 2 : 3;

struct Pixels {
    const bf16 *data;
    int h, w, c;
};

// The square of SPAN x SPAN that unit number `index` is.
struct Unit {
    int image, row, column;
    bool exists;

    __device__ __forceinline__ Unit(int index, int images, int h, int w) {
        const int down = (h + SPAN - 1) / SPAN, across = (w + SPAN - 1) / SPAN;
        image = index / (down * across);
        const int at = index - image * down * across;
        row = at / across * SPAN;
        column = at % across * SPAN;
        exists = image < images;
    }
};

// Starts the copies of ROWS x COLUMNS pixels from (row, column) of an image on, zeros outside, for all octets; pixel
// (i, j) goes to place(i, j) of the plane of its octet.
template <int ROWS, int COLUMNS, int PLANE, typename Place>
static __device__ __forceinline__ void copy_pixels(u32 to, const Pixels &from, const Unit &unit, int row, int column,
                                                   Place place) {
    const int octet = threadIdx.x % OCTETS, channel = blockIdx.x * depthwise::CHANNELS + octet * 8;
    const bool exists = unit.exists && channel < from.c;
    const bf16 *image = from.data + (exists ? static_cast<size_t>(unit.image) * from.h * from.w * from.c + channel : 0);
    constexpr int STEP = THREADS / OCTETS;
    int i = threadIdx.x / OCTETS / COLUMNS, j = threadIdx.x / OCTETS % COLUMNS;
    to += octet * PLANE * 16;
#pragma unroll 4
    for (int p = threadIdx.x / OCTETS; p < ROWS * COLUMNS; p += STEP) {
        const int y = row + i, x = column + j;
        const bool inside = exists && static_cast<u32>(y) < static_cast<u32>(from.h) &&
                            static_cast<u32>(x) < static_cast<u32>(from.w);
        const bf16 *source = image + (inside ? static_cast<i64>(y * from.w + x) * from.c : 0);
        ptx::cp_async<16>(to + place(i, j) * 16, source, inside);
        i += STEP / COLUMNS;
        j += STEP % COLUMNS;
        if (j >= COLUMNS) j -= COLUMNS, ++i;
    }
}

// Eight channels of two pixels -> for each channel a register with the first pixel in its lower half.
static __device__ __forceinline__ void load_pair(u32 (&pair)[8], const uint4 *low, const uint4 *high) {
    const uint4 a = *low, b = *high;
    pair[0] = __byte_perm(a.x, b.x, 0x5410), pair[1] = __byte_perm(a.x, b.x, 0x7632);
    pair[2] = __byte_perm(a.y, b.y, 0x5410), pair[3] = __byte_perm(a.y, b.y, 0x7632);
    pair[4] = __byte_perm(a.z, b.z, 0x5410), pair[5] = __byte_perm(a.z, b.z, 0x7632);
    pair[6] = __byte_perm(a.w, b.w, 0x5410), pair[7] = __byte_perm(a.w, b.w, 0x7632);
}

// ---- forward and dgrad ----

constexpr int HALVES = SPAN / 8, PATCH = SPAN + K - 1, PITCH = PATCH;
// Pixels of a plane: 2 more than a multiple of 8, so that copies to four planes lie on different banks.
constexpr int PLANE = SPAN == 16 ? 490 : 394;
static_assert(PLANE >= UNITS * PATCH * PITCH && PLANE % 8 == 2, "a plane holds the patches");
constexpr int MARGIN = K, WEIGHT_PITCH = 23, WEIGHT_PLANE = (K + 1) * WEIGHT_PITCH;
constexpr int STAGE = OCTETS * PLANE;

template <bool FLIP>
static __device__ __forceinline__ void correlate(const Pixels &from, const Pixels &to, bf16 *out, int images, int pad_h,
                                                 int pad_w, const bf16 *weight, const float *bias) {
    extern __shared__ uint4 shared[];
    uint4 *const weights = shared + 2 * STAGE;
    float *const biases = reinterpret_cast<float *>(weights + OCTETS * WEIGHT_PLANE);
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int c0 = blockIdx.x * depthwise::CHANNELS, channels = min(depthwise::CHANNELS, from.c - c0);
    const int down = (to.h + SPAN - 1) / SPAN, across = (to.w + SPAN - 1) / SPAN;
    const int tiles = (images * down * across + UNITS - 1) / UNITS;

    auto fetch = [&](int tile, int stage) {
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            const Unit unit(tile * UNITS + u, images, to.h, to.w);
            copy_pixels<PATCH, PATCH, PLANE>(ptx::shared_address(shared + stage * STAGE), from, unit, unit.row - pad_h,
                                             unit.column - pad_w,
                                             [&](int i, int j) { return (u * PATCH + i) * PITCH + j; });
        }
    };
    for (int i = threadIdx.x; i < OCTETS * WEIGHT_PLANE; i += THREADS) weights[i] = make_uint4(0, 0, 0, 0);
    if (threadIdx.x < depthwise::CHANNELS / 4) {
        float v[4] = {};
        if (bias && static_cast<int>(threadIdx.x) * 4 < channels) load_chunk(v, bias + c0 + threadIdx.x * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) biases[threadIdx.x * 4 + i] = v[i];
    }
    __syncthreads();
    depthwise::each_weight<true>(weight + static_cast<size_t>(c0) * TAPS, channels, TAPS,
                                 [&](int channel, int tap, float v) {
                                     const int at = FLIP ? TAPS - 1 - tap : tap;
                                     const int pixel = channel / 8 * WEIGHT_PLANE + at / K * WEIGHT_PITCH + MARGIN + at % K;
                                     reinterpret_cast<bf16 *>(weights + pixel)[channel % 8] = from_float<bf16>(v);
                                 });

    // The copies of the next tile run while this one is multiplied; in the first turn there is nothing to multiply.
    int stage = 1;
    for (int next = blockIdx.y; next < tiles + static_cast<int>(gridDim.y); next += gridDim.y, stage ^= 1) {
        if (next < tiles) fetch(next, stage ^ 1);
        ptx::cp_async_commit();
        const int tile = next - static_cast<int>(gridDim.y);
        if (tile < 0) continue;
        ptx::cp_async_wait<1>();
        __syncthreads();

        uint4 *const plane = shared + stage * STAGE + warp * PLANE;
        {
            float sum[HALVES][8][4];
#pragma unroll
            for (int k = 0; k < 8; ++k)
#pragma unroll
                for (int h = 0; h < HALVES; ++h)
#pragma unroll
                    for (int i = 0; i < 4; ++i) sum[h][k][i] = biases[warp * 8 + k];

            const int row = UNITS == 1 ? 2 * g : g / 4 * PATCH + g % 4 * 2;
            const uint4 *pixel = plane + row * PITCH + t, *tap = weights + warp * WEIGHT_PLANE + MARGIN + t - g;
            const int last = 8 * HALVES + (t < 2 ? 4 : 0);
            u32 before[2][8] = {};
#pragma unroll 1
            for (int q = 0; q <= K; ++q, pixel += PITCH, tap += WEIGHT_PITCH) {
                u32 now[2][8], pairs[HALVES + 1][8];
                load_pair(now[0], tap, tap + 4);
                load_pair(now[1], tap + 8, tap + 12);
                load_pair(pairs[0], pixel, pixel + 4);
#pragma unroll
                for (int h = 0; h < HALVES; ++h) {
                    load_pair(pairs[h + 1], pixel + 8 * h + 8, pixel + (h + 1 < HALVES ? 8 * h + 12 : last));
#pragma unroll
                    for (int k = 0; k < 8; ++k) {
                        const u32 a[4] = {now[0][k], before[0][k], now[1][k], before[1][k]};
                        ptx::mma_m16n8k16_bf16(sum[h][k], a, pairs[h][k], pairs[h + 1][k]);
                    }
                }
#pragma unroll
                for (int k = 0; k < 8; ++k) before[0][k] = now[0][k], before[1][k] = now[1][k];
            }
            // The pixels of this plane have been read by this warp alone: the results take their place.
            __syncwarp();
#pragma unroll
            for (int h = 0; h < HALVES; ++h)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int r = 4 * t + (i == 1 ? 2 : i == 2 ? 1 : i);
                    const float v[8] = {sum[h][0][i], sum[h][1][i], sum[h][2][i], sum[h][3][i],
                                        sum[h][4][i], sum[h][5][i], sum[h][6][i], sum[h][7][i]};
                    plane[r * (8 * HALVES) + 8 * h + (g ^ (2 * t))] = pack(v, bf16());
                }
        }
        __syncthreads();

        const int octet = threadIdx.x % OCTETS, first = threadIdx.x / OCTETS;
        const uint4 *const results = shared + stage * STAGE + octet * PLANE;
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            const Unit unit(tile * UNITS + u, images, to.h, to.w);
            const int column = unit.column + first % SPAN;
            if (!unit.exists || column >= to.w || octet * 8 >= channels) continue;
            bf16 *const image = out + static_cast<size_t>(unit.image) * to.h * to.w * to.c + c0 + octet * 8;
#pragma unroll
            for (int i = 0; i < SPAN * SPAN / 32; ++i) {
                const int r = u * SPAN + first / SPAN + i * (32 / SPAN), row = unit.row + r % SPAN;
                if (row < to.h)
                    ptx::store_global_16(image + static_cast<i64>(row * to.w + column) * to.c,
                                         results[r * SPAN + ((first % SPAN) ^ (r / 4 * 2))]);
            }
        }
        __syncthreads();
    }
}

// ---- wgrad ----

constexpr int X_COLUMNS = SPAN + K, Y_ROWS = SPAN + K - 1;
constexpr int X_UNIT = SPAN * X_COLUMNS, Y_UNIT = Y_ROWS * SPAN;
constexpr int X_PLANE = UNITS * X_UNIT + 2, Y_PLANE = UNITS * Y_UNIT + 2;
static_assert(X_PLANE % 8 == 2 && Y_PLANE % 8 == 2, "copies to four planes lie on different banks");
constexpr int WGRAD_STAGE = OCTETS * (X_PLANE + Y_PLANE);

// A row of gradients is turned by half of 8 pixels where its number is odd.
static __device__ __forceinline__ int place_y(int i, int j) { return i * SPAN + (j ^ (i % 2 * 4)); }

static __device__ __forceinline__ void correlate_gradients(const Pixels &x, const Pixels &y, int images, int pad_h, int pad_w,
                                                           float *partial) {
    extern __shared__ uint4 shared[];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int c0 = blockIdx.x * depthwise::CHANNELS, channels = min(depthwise::CHANNELS, x.c - c0);
    const int down = (x.h + SPAN - 1) / SPAN, across = (y.w + SPAN - 1) / SPAN;
    const int tiles = (images * down * across + UNITS - 1) / UNITS;

    auto fetch = [&](int tile, int stage) {
        const u32 xs = ptx::shared_address(shared + stage * WGRAD_STAGE), ys = xs + OCTETS * X_PLANE * 16;
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            const Unit unit(tile * UNITS + u, images, x.h, y.w);
            copy_pixels<SPAN, X_COLUMNS, X_PLANE>(xs, x, unit, unit.row, unit.column - pad_w,
                                                  [&](int i, int j) { return u * X_UNIT + i * X_COLUMNS + j; });
            copy_pixels<Y_ROWS, SPAN, Y_PLANE>(ys, y, unit, unit.row + pad_h - (K - 1), unit.column,
                                               [&](int i, int j) { return u * Y_UNIT + place_y(i, j); });
        }
    };
    float sum[8][4] = {};
    // The copies of the next tile run while this one is multiplied; in the first turn there is nothing to multiply.
    int stage = 1;
    for (int next = blockIdx.y; next < tiles + static_cast<int>(gridDim.y); next += gridDim.y, stage ^= 1) {
        if (next < tiles) fetch(next, stage ^ 1);
        ptx::cp_async_commit();
        const int tile = next - static_cast<int>(gridDim.y);
        if (tile < 0) continue;
        ptx::cp_async_wait<1>();
        __syncthreads();
        const uint4 *const stage_x = shared + stage * WGRAD_STAGE;
        const uint4 *const xs = stage_x + warp * X_PLANE + t + g;
        const uint4 *const ys = stage_x + OCTETS * X_PLANE + warp * Y_PLANE + (K - g) * SPAN + t;
        const int turn = (g + 1) % 2 * 4;
        constexpr int X_NEXT = UNITS == 1 ? 8 : X_UNIT, Y_NEXT = UNITS == 1 ? 8 : Y_UNIT;
#pragma unroll
        for (int i = 0; i < SPAN; i += 2) {
            u32 a[4][8], b[2][8];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
#pragma unroll
                for (int p = 0; p < 2; ++p) {
                    const uint4 *const at = xs + (i + p) * X_COLUMNS + h * X_NEXT;
                    load_pair(a[2 * h + p], at, at + 4);
                }
                const uint4 *const at = ys + i * SPAN + h * Y_NEXT;
                load_pair(b[h], at + turn, at + (turn ^ 4));
            }
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                const u32 m[4] = {a[0][k], a[1][k], a[2][k], a[3][k]};
                ptx::mma_m16n8k16_bf16(sum[k], m, b[0][k], b[1][k]);
            }
        }
        __syncthreads();
    }

    // [channel][r][s], as in memory. Tap row 2t is in this lane, 2t-1 partly in the lane before.
    float *const result = reinterpret_cast<float *>(shared);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const float before = __shfl_up_sync(0xffffffffu, sum[k][3], 1);
        float *const to = result + (warp * 8 + k) * TAPS + g;
        if (g < K) {
            to[2 * t * K] = sum[k][1] + sum[k][2];
            if (t > 0) to[(2 * t - 1) * K] = sum[k][0] + before;
        }
    }
    __syncthreads();
    float *const to = partial + (static_cast<size_t>(blockIdx.y) * x.c + c0) * TAPS;
    for (int i = threadIdx.x; i < channels * TAPS / 4; i += THREADS)
        ptx::store_global_16(to + 4 * i, shared[i]);
}

} // namespace

#if PASS_FWD
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    conv2d_depthwise_mma_fwd(const __grid_constant__ DepthwiseParams p) {
    const Pixels x = {reinterpret_cast<const bf16 *>(p.x), p.h, p.w, p.c};
    const Pixels y = {nullptr, p.ho, p.wo, p.c};
    correlate<false>(x, y, reinterpret_cast<bf16 *>(p.y), p.n, p.pad_h, p.pad_w,
                     reinterpret_cast<const bf16 *>(p.weight), reinterpret_cast<const float *>(p.bias));
}
#elif PASS_DGRAD
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    conv2d_depthwise_mma_dgrad(const __grid_constant__ DepthwiseParams p) {
    const Pixels y = {reinterpret_cast<const bf16 *>(p.y), p.ho, p.wo, p.c};
    const Pixels x = {nullptr, p.h, p.w, p.c};
    correlate<true>(y, x, reinterpret_cast<bf16 *>(p.x), p.n, K - 1 - p.pad_h, K - 1 - p.pad_w,
                    reinterpret_cast<const bf16 *>(p.weight), nullptr);
}
#elif PASS_WGRAD
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    conv2d_depthwise_mma_wgrad(const __grid_constant__ DepthwiseParams p) {
    const Pixels x = {reinterpret_cast<const bf16 *>(p.x), p.h, p.w, p.c};
    const Pixels y = {reinterpret_cast<const bf16 *>(p.y), p.ho, p.wo, p.c};
    correlate_gradients(x, y, p.n, p.pad_h, p.pad_w, reinterpret_cast<float *>(p.weight));
}
#endif
