// Average pooling to a fixed size, and its gradient.
//
// Maths: bin i of `bins` over an axis of `len` = floor(i len / bins) .. ceil((i + 1) len / bins)
//
//        fwd   y[n, i, j, c] = mean of x[n, :, :, c] over bin i times bin j
//        bwd   gx[n, h, w, c] = sum of gy[n, i, j, c] / (pixels of bin i times bin j) over the bins that hold (h, w)
//
// Memory: x, gx [n, h, w, c], y, gy [n, h', w', c] of T.
//
//     fwd   grid: pixels of y * blocks across the channels     block -> one pixel of y, 8 chunks of channels x 32 slots of pixels of
//           its bin: see tile/column_sum.cuh
//     bwd   block -> a tile of pixels of gx and the bins that hold them: see tile/window.cuh
//
// Numerics: f32 sums, fwd by slots and then the slots in order, rounded to T once; `=`. The same bits in every run.
//
// Limits (H100, predicted; simulated only): bytes of x and y, an addition for an element: memory, 3.35 TB/s.
#include "tile/row_sum.cuh"
#include "tile/window.cuh"

namespace {

constexpr int EACH = window::EACH;

struct Bins {
    int len, bins;

    __device__ __forceinline__ window::Range pixels(int i) const {
        return window::Range{i * len / bins, ((i + 1) * len + bins - 1) / bins};
    }
    // The bins that hold a pixel.
    __device__ __forceinline__ window::Range holders(int pixel) const {
        return window::Range{pixel * bins / len, ((pixel + 1) * bins + len - 1) / len};
    }
    __device__ __forceinline__ int size(int i) const {
        const window::Range r = pixels(i);
        return r.end - r.begin;
    }
};

} // namespace

extern "C" __global__ void __launch_bounds__(column_sum::THREADS, 4)
    adaptive_avg_pool_fwd(const __grid_constant__ WindowParams p) {
    const u32 pixel = blockIdx.x / p.across, row = pixel / p.to_w, image = row / p.to_h;
    const window::Range ys = Bins{p.from_h, p.to_h}.pixels(row % p.to_h), xs = Bins{p.from_w, p.to_w}.pixels(pixel % p.to_w);
    const int width = xs.end - xs.begin, count = (ys.end - ys.begin) * width;
    const float scale = 1.0f / static_cast<float>(count);
    const T *const in = reinterpret_cast<const T *>(p.from) +
                        ((static_cast<i64>(image) * p.from_h + ys.begin) * p.from_w + xs.begin) * p.channels;
    T *const out = reinterpret_cast<T *>(p.to) + static_cast<i64>(pixel) * p.channels;
    const i64 from_w = p.from_w, channels = p.channels;
    column_sum::fold<T, VEC != 0, EACH>(
        0, count, p.channels, blockIdx.x % p.across,
        [=](float (&v)[EACH], int i, int column) {
            const int y = i / width;
            elementwise::load(v, in + (y * from_w + i - y * width) * channels + column);
        },
        [=](int column, float (&total)[EACH]) {
#pragma unroll
            for (int k = 0; k < EACH; ++k) total[k] *= scale;
            elementwise::store(out + column, total);
        });
}

extern "C" __global__ void __launch_bounds__(window::THREADS, 4) adaptive_avg_pool_bwd(const __grid_constant__ WindowParams p) {
    const Bins rows = {p.to_h, p.from_h}, columns = {p.to_w, p.from_w};
    auto span = [](const Bins &axis, int first, int last) {
        return window::Range{axis.holders(first).begin, axis.holders(last).end};
    };
    window::gather<false>(
        p, [=](int first, int last) { return span(rows, first, last); },
        [=](int first, int last) { return span(columns, first, last); },
        [=](float (&sum)[EACH], const window::Source &gy, int y, int x, i64) {
            const window::Range is = rows.holders(y), js = columns.holders(x);
#pragma unroll
            for (int k = 0; k < EACH; ++k) sum[k] = 0.0f;
            for (int i = is.begin; i < is.end; ++i)
                for (int j = js.begin; j < js.end; ++j) {
                    const float scale = 1.0f / static_cast<float>(rows.size(i) * columns.size(j));
                    float g[EACH];
                    gy.read(g, i, j);
#pragma unroll
                    for (int k = 0; k < EACH; ++k) sum[k] = fmaf(scale, g[k], sum[k]);
                }
        });
}
