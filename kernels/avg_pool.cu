// Average pooling with a square window, and its gradient.
//
// Maths: fwd   y[n, i, j, c] = 1/k^2 sum over the window of x[n, i s - p + u, j s - p + v, c], 0 outside the image
//        bwd   gx[n, h, w, c] = 1/k^2 sum of gy over the windows that cover (h, w)
//
// Memory: x, gx [n, h, w, c], y, gy [n, h', w', c] of T.
//
//     block -> a tile of pixels of y (fwd) or gx (bwd) and the region of x or gy under it: see tile/window.cuh
//
// Numerics: f32 sums in row-major order, rounded to T once; `=`. The same bits in every run.
//
// Limits (H100, predicted; simulated only): bytes of x and y, an addition for each element of a window: memory, 3.35 TB/s.
#include "tile/window.cuh"

// v = scale * sum of the source's pixels in ys x xs
static __device__ __forceinline__ void mean(float (&v)[window::EACH], const window::Source &source, window::Range ys,
                                            window::Range xs, float scale) {
    constexpr int EACH = window::EACH;
#pragma unroll
    for (int k = 0; k < EACH; ++k) v[k] = 0.0f;
    for (int y = ys.begin; y < ys.end; ++y)
        for (int x = xs.begin; x < xs.end; ++x) {
            float one[EACH];
            source.read(one, y, x);
#pragma unroll
            for (int k = 0; k < EACH; ++k) v[k] += one[k];
        }
#pragma unroll
    for (int k = 0; k < EACH; ++k) v[k] *= scale;
}

extern "C" __global__ void __launch_bounds__(window::THREADS, 4) avg_pool_fwd(const __grid_constant__ WindowParams p) {
    const window::Pool pool = {p.kernel, p.stride, p.pad};
    const int h = p.from_h, w = p.from_w;
    const float scale = p.scale;
    auto span = [=](int first, int last, int len) {
        return window::Range{pool.covered(first, len).begin, pool.covered(last, len).end};
    };
    window::gather<false>(
        p, [=](int first, int last) { return span(first, last, h); }, [=](int first, int last) { return span(first, last, w); },
        [=](float (&v)[window::EACH], const window::Source &x, int i, int j, i64) {
            mean(v, x, pool.covered(i, h), pool.covered(j, w), scale);
        });
}

extern "C" __global__ void __launch_bounds__(window::THREADS, 4) avg_pool_bwd(const __grid_constant__ WindowParams p) {
    const window::Pool pool = {p.kernel, p.stride, p.pad};
    const int h = p.from_h, w = p.from_w;
    const float scale = p.scale;
    auto span = [=](int first, int last, int len) {
        return window::Range{pool.covering(first, len).begin, pool.covering(last, len).end};
    };
    window::gather<false>(
        p, [=](int first, int last) { return span(first, last, h); }, [=](int first, int last) { return span(first, last, w); },
        [=](float (&v)[window::EACH], const window::Source &gy, int y, int x, i64) {
            mean(v, gy, pool.covering(y, h), pool.covering(x, w), scale);
        });
}
