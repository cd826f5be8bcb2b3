// Implicit GEMM whose k is the pixels: the weight gradient of a convolution.
//
//     C[m, n] = sum over pixels p of gy[p, m] x[pixel of p under tap(n), channel(n)]
//
//     m: output channel        n: tap and input channel, flattened        k: pixels of gy, all images
//
// Both operands lie mn-major, as they do in memory: a row of a tile is one pixel, channels along it. A thread copies the
// same channels of every row, so its tap never changes; it walks over the pixels with a fixed stride and keeps their
// coordinates by carrying, without a division.
//
//     pixels  |split 0 ......|split 1 ......|split 2 ...|     each split writes its own sums;
//                                                             tile/split_sum.cuh adds them in order
#pragma once
#include "tile/epilogue.cuh"
#include "tile/fast_div.cuh"
#include "tile/gemm_mainloop.cuh"

// As in Rust: `implicit_gemm::params::Pixels`.
struct PixelParams {
    const T *x;           // [images, size, size, x_pixel]
    const T *gy;          // [images, height, width, gy_pixel]
    float *sums;          // [splits, rows of all groups, columns]
    int size[2];          // of x
    int kernel[2], stride[2], pad[2], dilation[2];
    int images;
    int height, width;    // of gy
    int x_pixel, gy_pixel; // elements from pixel to pixel
    int rows;             // m of a group: output channels
    int channels;         // input channels of a group
    int tiles_n;
    int splits;
    int pixels_per_split; // a multiple of BK
};

struct PixelRows {
    int first, count, group;
    __device__ __forceinline__ i64 output(int m) const {
        return first + m < count ? static_cast<i64>(group) * count + first + m : -1;
    }
};

struct PixelLoader {
    typedef OperandTile<MN_MAJOR, BM> TileA;
    typedef OperandTile<MN_MAJOR, BN> TileB;
    static constexpr int COPIES_M = BM / WIDTH, STEP_M = THREADS / COPIES_M;
    static constexpr int COPIES_N = BN / WIDTH, STEP_N = THREADS / COPIES_N;
    static_assert(THREADS % COPIES_M == 0 && BK % STEP_M == 0, "threads share rows of A evenly");
    static_assert(THREADS % COPIES_N == 0 && BK % STEP_N == 0, "threads share rows of B evenly");

    const PixelParams &p;
    const T *gy, *x;      // gy: this thread's next pixel; x: the image of this thread's next pixel
    int left_m, left_n;   // pixels of the split from there on
    int y, xx;            // coordinates of the next pixel in gy's map
    int dy, dx;           // from stride times them to the tap's pixel
    bool m_there, n_there;

    __device__ __forceinline__ PixelLoader(const PixelParams &p, int group, int m0, int n0, i64 begin, int count)
        : p(p) {
        const int m = m0 + static_cast<int>(threadIdx.x) % COPIES_M * WIDTH, line_m = threadIdx.x / COPIES_M;
        gy = p.gy + (begin + line_m) * p.gy_pixel + group * p.rows + m;
        left_m = count - line_m, m_there = m < p.rows;

        const int n = n0 + static_cast<int>(threadIdx.x) % COPIES_N * WIDTH, line_n = threadIdx.x / COPIES_N;
        const int tap = n / p.channels, r = tap / p.kernel[1], s = tap - r * p.kernel[1];
        n_there = r < p.kernel[0];
        dy = r * p.dilation[0] - p.pad[0], dx = s * p.dilation[1] - p.pad[1];
        left_n = count - line_n;
        const i64 pixel = begin + line_n;
        const int per_map = p.height * p.width;
        const int image = static_cast<int>(pixel / per_map), rest = static_cast<int>(pixel - static_cast<i64>(image) * per_map);
        y = rest / p.width, xx = rest - y * p.width;
        x = p.x + static_cast<i64>(image) * p.size[0] * p.size[1] * p.x_pixel + group * p.channels + (n - tap * p.channels);
    }

    __device__ __forceinline__ void load(u8 *stage) {
        const int m = threadIdx.x % COPIES_M * WIDTH, line_m = threadIdx.x / COPIES_M;
#pragma unroll
        for (int i = 0; i < BK / STEP_M; i++) {
            const bool there = m_there && left_m > 0;
            copy_to_shared<T, WIDTH>(stage + TileA::element(line_m + i * STEP_M, m), there ? gy : p.gy, there);
            gy += STEP_M * p.gy_pixel;
            left_m -= STEP_M;
        }
        stage += TileA::BYTES;
        const int n = threadIdx.x % COPIES_N * WIDTH, line_n = threadIdx.x / COPIES_N;
#pragma unroll
        for (int i = 0; i < BK / STEP_N; i++) {
            const int row = y * p.stride[0] + dy, col = xx * p.stride[1] + dx;
            const bool there = n_there && left_n > 0 && static_cast<u32>(row) < static_cast<u32>(p.size[0]) &&
                               static_cast<u32>(col) < static_cast<u32>(p.size[1]);
            copy_to_shared<T, WIDTH>(stage + TileB::element(line_n + i * STEP_N, n),
                                     there ? x + (row * p.size[1] + col) * p.x_pixel : p.x, there);
            left_n -= STEP_N;
            xx += STEP_N;
            while (xx >= p.width) {
                xx -= p.width;
                if (++y == p.height) y = 0, x += static_cast<i64>(p.size[0]) * p.size[1] * p.x_pixel;
            }
        }
    }
};

// The whole kernel. Grid: tiles (n fastest), groups, splits.
static __device__ __forceinline__ void pixel_gemm(const PixelParams &p) {
    extern __shared__ __align__(128) u8 shared[];
    const int n0 = blockIdx.x % p.tiles_n * BN, m0 = blockIdx.x / p.tiles_n * BM, group = blockIdx.y;
    const i64 pixels = static_cast<i64>(p.images) * p.height * p.width;
    const i64 begin = static_cast<i64>(blockIdx.z) * p.pixels_per_split;
    const int count = static_cast<int>(min(static_cast<i64>(p.pixels_per_split), pixels - begin));
    const int columns = p.kernel[0] * p.kernel[1] * p.channels;

    PixelLoader loader(p, group, m0, n0, begin, count);
    WarpProduct<MN_MAJOR, MN_MAJOR> product(threadIdx.x >> 5, threadIdx.x & 31);
    gemm_mainloop(product, loader, shared, (count + BK - 1) / BK);

    const PixelRows rows = {m0, p.rows, group};
    float *to = p.sums + static_cast<i64>(blockIdx.z) * gridDim.y * p.rows * columns;
    store_sums(product, shared, to, columns, n0, columns, rows);
}
