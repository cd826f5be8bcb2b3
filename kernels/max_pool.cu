// Max pooling with a square window, and its gradient.
//
// Maths: fwd   y[n, i, j, c] = max over the window of x[n, i s - p + u, j s - p + v, c]; its first maximum is at position u k + v
//        bwd   gx[n, h, w, c] = sum of gy over the windows whose first maximum lies at (h, w)
//
// Memory: x, gx [n, h, w, c], y, gy [n, h', w', c] of T; positions [n, h', w', c] of one byte, written by fwd, read by bwd.
//
//     block -> a tile of pixels of y (fwd) or gx (bwd) and the region of x, or of gy and positions, under it: see tile/window.cuh
//
// Numerics: fwd exact, a window with a NaN gives NaN; bwd sums in f32 in row-major order of the windows, rounded to T once; `=`. The
// same bits in every run.
//
// Limits (H100, predicted; simulated only): bytes of x, y and positions; 3x3 with stride 2 takes some 360 instructions for a chunk of
// y, 60 % of what can be issued while memory, 3.35 TB/s, brings x.
#include "tile/window.cuh"

extern "C" __global__ void __launch_bounds__(window::THREADS, 4) max_pool_fwd(const __grid_constant__ WindowParams p) {
    constexpr int EACH = window::EACH;
    const window::Pool pool = {p.kernel, p.stride, p.pad};
    const int h = p.from_h, w = p.from_w;
    u8 *const positions = reinterpret_cast<u8 *>(p.positions);
    auto span = [=](int first, int last, int len) {
        return window::Range{pool.covered(first, len).begin, pool.covered(last, len).end};
    };
    window::gather<false>(
        p, [=](int first, int last) { return span(first, last, h); }, [=](int first, int last) { return span(first, last, w); },
        [=](float (&best)[EACH], const window::Source &x, int i, int j, i64 at) {
            const window::Range ys = pool.covered(i, h), xs = pool.covered(j, w);
            const int top = i * pool.stride - pool.pad, left = j * pool.stride - pool.pad;
            u32 position[EACH];
            x.read(best, ys.begin, xs.begin);
#pragma unroll
            for (int k = 0; k < EACH; ++k) position[k] = (ys.begin - top) * pool.kernel + xs.begin - left;
            for (int y = ys.begin; y < ys.end; ++y)
                for (int z = xs.begin; z < xs.end; ++z) {
                    float v[EACH];
                    x.read(v, y, z);
                    const u32 here = (y - top) * pool.kernel + z - left;
#pragma unroll
                    for (int k = 0; k < EACH; ++k)
                        if (v[k] > best[k] || v[k] != v[k]) best[k] = v[k], position[k] = here;
                }
            window::PackedPositions packed;
            window::pack_positions(packed, position);
            *reinterpret_cast<window::PackedPositions *>(positions + at) = packed;
        });
}

extern "C" __global__ void __launch_bounds__(window::THREADS, 4) max_pool_bwd(const __grid_constant__ WindowParams p) {
    constexpr int EACH = window::EACH;
    const window::Pool pool = {p.kernel, p.stride, p.pad};
    const int h = p.from_h, w = p.from_w;
    auto span = [=](int first, int last, int len) {
        return window::Range{pool.covering(first, len).begin, pool.covering(last, len).end};
    };
    window::gather<true>(
        p, [=](int first, int last) { return span(first, last, h); }, [=](int first, int last) { return span(first, last, w); },
        [=](float (&sum)[EACH], const window::Source &gy, int y, int x, i64) {
            const window::Range is = pool.covering(y, h), js = pool.covering(x, w);
#pragma unroll
            for (int k = 0; k < EACH; ++k) sum[k] = 0.0f;
            for (int i = is.begin; i < is.end; ++i)
                for (int j = js.begin; j < js.end; ++j) {
                    const u32 here = (y + pool.pad - i * pool.stride) * pool.kernel + x + pool.pad - j * pool.stride;
                    const window::PackedPositions positions = gy.positions(i, j);
                    float g[EACH];
                    gy.read(g, i, j);
#pragma unroll
                    for (int k = 0; k < EACH; ++k)
                        if (window::position(positions, k) == here) sum[k] += g[k];
                }
        });
}
