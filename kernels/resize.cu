// Resizing, nearest or bilinear, and its gradient.
//
// Maths: a result i of an axis of `out` reads an axis of `len` at r_i = numerator(i) / denominator, kept within 0 .. len - 1:
//
//            nearest         floor(i len / out)
//            half-pixel      ((2 i + 1) len - out) / (2 out)
//            align_corners   i (len - 1) / (out - 1), or 0 if out = 1
//
//        fwd   y[i, j] = sum over a, b of hat(r_i - a) hat(s_j - b) x[a, b],   hat(t) = max(0, 1 - |t|)
//        bwd   gx[a, b] = sum over i, j of hat(r_i - a) hat(s_j - b) gy[i, j]
//
// Memory: x, gx [n, h, w, c], y, gy [n, h', w', c] of T.
//
//     block -> a tile of pixels of y (fwd) or gx (bwd) and the region of x or gy under it: see tile/window.cuh
//
// Numerics: places are fractions of integers (sides below 2^15), so that no rounding picks a neighbour; f32 sums in row-major order,
// rounded to T once; `=`. The same bits in every run.
//
// Limits (H100, predicted; simulated only): bytes of x and y: memory, 3.35 TB/s; the gradient of a bilinear doubling has 16 terms for
// an element and is bound by instructions as much.
#include "tile/window.cuh"

#ifndef MODE
#define MODE 0 // 0 nearest, 1 half-pixel, 2 align_corners
#endif

namespace {

// Two pixels and the weight of the second.
struct Tap {
    int lo, hi;
    float weight;
};

// One axis: `len` pixels of x become `out` of y.
struct Axis {
    int len, out;

    __device__ __forceinline__ int denominator() const { return MODE == 1 ? 2 * out : max(out - 1, 1); }
    __device__ __forceinline__ int numerator(int i) const {
        if (MODE == 1) return min(max((2 * i + 1) * len - out, 0), (len - 1) * 2 * out);
        return out == 1 ? 0 : i * (len - 1);
    }
    __device__ __forceinline__ Tap tap(int i) const {
        if (MODE == 0) {
            const int lo = i * len / out;
            return Tap{lo, lo, 0.0f};
        }
        const int n = numerator(i), d = denominator(), lo = n / d;
        return Tap{lo, min(lo + 1, len - 1), static_cast<float>(n - lo * d) / static_cast<float>(d)};
    }
    // Results that read pixel `a` with a weight.
    __device__ __forceinline__ window::Range readers(int a) const {
        if (MODE == 0) return window::Range{(a * out + len - 1) / len, ((a + 1) * out + len - 1) / len};
        if (MODE == 1) {
            const int before = (2 * a - 1) * out - len, after = (2 * a + 3) * out - len;
            const int begin = a == 0 || before < 0 ? 0 : before / (2 * len) + 1;
            const int end = a == len - 1 ? out : after <= 0 ? 0 : (after + 2 * len - 1) / (2 * len);
            return window::Range{begin, min(end, out)};
        }
        if (out == 1 || len == 1) return window::Range{a == 0 ? 0 : out, out};
        const int begin = a == 0 ? 0 : (a - 1) * (out - 1) / (len - 1) + 1;
        const int end = a == len - 1 ? out : ((a + 1) * (out - 1) + len - 2) / (len - 1);
        return window::Range{begin, min(end, out)};
    }
    // Weight of pixel `a` in a result that reads it.
    __device__ __forceinline__ float weight(int i, int a) const {
        if (MODE == 0) return 1.0f;
        const int d = denominator();
        return 1.0f - static_cast<float>(abs(numerator(i) - a * d)) / static_cast<float>(d);
    }
};

} // namespace

extern "C" __global__ void __launch_bounds__(window::THREADS, 3) resize_fwd(const __grid_constant__ WindowParams p) {
    constexpr int EACH = window::EACH;
    const Axis rows = {p.from_h, p.to_h}, columns = {p.from_w, p.to_w};
    auto span = [](const Axis &axis, int first, int last) {
        return window::Range{axis.tap(first).lo, axis.tap(last).hi + 1};
    };
    window::gather<false>(
        p, [=](int first, int last) { return span(rows, first, last); },
        [=](int first, int last) { return span(columns, first, last); },
        [=](float (&v)[EACH], const window::Source &x, int i, int j, i64) {
            const Tap r = rows.tap(i), s = columns.tap(j);
            x.read(v, r.lo, s.lo);
            if (MODE == 0) return;
            float q[EACH], u[EACH], w[EACH];
            x.read(q, r.lo, s.hi);
            x.read(u, r.hi, s.lo);
            x.read(w, r.hi, s.hi);
            const float right = s.weight, left = 1.0f - right, down = r.weight, up = 1.0f - down;
#pragma unroll
            for (int k = 0; k < EACH; ++k)
                v[k] = up * (left * v[k] + right * q[k]) + down * (left * u[k] + right * w[k]);
        });
}

extern "C" __global__ void __launch_bounds__(window::THREADS, 3) resize_bwd(const __grid_constant__ WindowParams p) {
    constexpr int EACH = window::EACH;
    const Axis rows = {p.to_h, p.from_h}, columns = {p.to_w, p.from_w};
    auto span = [](const Axis &axis, int first, int last) {
        return window::Range{axis.readers(first).begin, axis.readers(last).end};
    };
    window::gather<false>(
        p, [=](int first, int last) { return span(rows, first, last); },
        [=](int first, int last) { return span(columns, first, last); },
        [=](float (&sum)[EACH], const window::Source &gy, int y, int x, i64) {
            const window::Range is = rows.readers(y), js = columns.readers(x);
#pragma unroll
            for (int k = 0; k < EACH; ++k) sum[k] = 0.0f;
            for (int i = is.begin; i < is.end; ++i) {
                const float down = rows.weight(i, y);
                for (int j = js.begin; j < js.end; ++j) {
                    const float weight = down * columns.weight(j, x);
                    float g[EACH];
                    gy.read(g, i, j);
#pragma unroll
                    for (int k = 0; k < EACH; ++k) sum[k] = fmaf(weight, g[k], sum[k]);
                }
            }
        });
}
