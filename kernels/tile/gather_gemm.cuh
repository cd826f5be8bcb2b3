// Implicit GEMM whose rows are pixels: the forward pass of a convolution, and its input gradient.
//
//     C[m, n] = sum over segments, taps, channels of A(pixel m, tap, c) W(n, tap, c)
//
//                      m: pixel of the result    n                         k: segment, tap, channel
//     forward          of y                      output channel            input channels of every segment
//     input gradient   of dx                     input channel             output channels
//
// A is never built: every thread knows the pixels of its rows and finds, for each chunk of channels, the pixel that the
// tap reads; outside the image it copies zeros.
//
//     segment 0        segment 1        segment 2               K loop over several inputs: a concatenation that is never
//     |tap 0 |tap 1 |..|tap 0 |tap 1 |..|only tap (1x1)|        written, then the 1x1 skip of a residual block
//      c.. c..
//
//     phases            a b a b          Results whose pixels read different taps: the input gradient of a strided
//     (2 x 2)           c d c d          convolution, and a 3x3 convolution of a doubled image, are as many small
//                       a b a b          convolutions, one for each residue of the pixel's row and column.
//
// K advances in chunks, not in whole blocks of channels: 48 channels need no padding to 64. WIDTH is the number of
// elements of a copy: 16 bytes where channels allow it, fewer down to a single element for odd ones.
#pragma once
#include "tile/epilogue.cuh"
#include "tile/fast_div.cuh"
#include "tile/gemm_mainloop.cuh"

// One axis of a segment. Input coordinate of result i (of a phase) and tap t: i * step + first + t * tap_step.
// As in Rust: `implicit_gemm::params::Axis`.
struct Axis {
    int size;        // of the input
    int kernel;      // taps of the weight
    int step;        // forward: the stride
    int pad;
    int dilation;
    int tap_step;    // forward: the dilation; gradient: -dilation / gcd(dilation, stride)
    int weight_step; // taps of the weight from tap to tap of a phase; gradient: stride / gcd(dilation, stride)
    int phases;      // gradient: the stride; doubled image: 2; else 1
};

// As in Rust: `implicit_gemm::params::Segment`.
struct Segment {
    const T *x;      // [images, size, size, pixel]
    const T *w;      // rows of all taps and channels of an output channel
    Axis axis[2];    // vertical, horizontal
    FastDiv channels; // summed over, of a group
    int pixel;       // elements from pixel to pixel of x
    int w_row;       // elements from row to row of w
    int w_tap;       // elements from tap to tap of w
    int w_phase;     // doubled image: elements from phase to phase of w
    int pad;
};

constexpr int MAX_SEGMENTS = 4;

// As in Rust: `implicit_gemm::params::Gather`.
struct GatherParams {
    Segment segment[MAX_SEGMENTS];
    Epilogue out;
    int segments;
    int images;
    int height, width;     // of the result
    int phases[2];
    int columns;           // n of a group
    int groups;
    int tiles_m, tiles_n;  // tiles of a unit
    int unit_images;       // images whose pixels share tiles: 1 for statistics, else all
    int splits;            // parts of K
    int steps_per_split;
    int pad;
};

// The taps of one axis for one phase.
struct Taps {
    int first, count, weight0;
};

static __device__ __forceinline__ Taps taps_of(const Axis &a, int phase) {
#if PASS_DGRAD
    // Tap r reaches result pixels h with (h + pad - r * dilation) divisible by the stride.
    for (int r = 0; r < a.kernel; r++) {
        const int d = phase + a.pad - r * a.dilation;
        if (d % a.phases == 0) return Taps{d / a.phases, (a.kernel - r + a.weight_step - 1) / a.weight_step, r};
    }
    return Taps{0, 0, 0};
#elif DOUBLED
    return Taps{phase - 1, 2, 0};
#else
    return Taps{-a.pad, a.kernel, 0};
#endif
}

// Which pixels the rows of this block are.
struct GatherRows {
    int images, height, width; // of this phase; images of this unit
    int full_height, full_width, phases[2], phase[2];
    int unit, first, count;    // number of the unit, first row of the tile, rows of the unit
    int stats_row;

    __device__ __forceinline__ bool split(int m, int &image, int &y, int &x) const {
        const int row = first + m;
        const int pixels = height * width;
        image = row / pixels;
        const int rest = row - image * pixels;
        y = rest / width, x = rest - y * width;
        return row < count;
    }
    // Row of the result, or -1.
    __device__ __forceinline__ i64 output(int m) const {
        if (first + m >= count) return -1;
        if (phases[0] * phases[1] == 1) return static_cast<i64>(unit) * count + first + m;
        int image, y, x;
        split(m, image, y, x);
        return (static_cast<i64>(unit * images + image) * full_height + y * phases[0] + phase[0]) * full_width +
               x * phases[1] + phase[1];
    }
    // Row of the residual that belongs to row `at` of the result.
    __device__ __forceinline__ i64 residual(int m, i64 at, int shift) const {
        if (shift == 0) return at;
        int image, y, x;
        split(m, image, y, x);
        y = y * phases[0] + phase[0], x = x * phases[1] + phase[1];
        return (static_cast<i64>(unit * images + image) * (full_height >> 1) + (y >> 1)) * (full_width >> 1) + (x >> 1);
    }
    __device__ __forceinline__ i64 stats() const { return stats_row; }
};

constexpr int ROW_COPIES = BK / WIDTH;                     // copies of a k-major row
constexpr int ROW_STEP = THREADS / ROW_COPIES;             // rows between the copies of a thread
constexpr int COPIES_A = (BM + ROW_STEP - 1) / ROW_STEP;   // of a thread, a step
static_assert(THREADS % ROW_COPIES == 0 && BM % ROW_STEP == 0 && BN % ROW_STEP == 0, "threads share rows evenly");

// Copies of A, and of W as it lies: k-major in the forward pass, mn-major (rows are output channels) in the gradient.
template <Major MAJOR_B> struct GatherLoader {
    typedef OperandTile<K_MAJOR, BM> TileA;
    typedef OperandTile<MAJOR_B, BN> TileB;
    static constexpr int BYTES = WIDTH * static_cast<int>(sizeof(T));
    // Copies of an mn-major row of W, and rows between those of a thread.
    static constexpr int LINE_COPIES = BN / WIDTH, LINE_STEP = THREADS / LINE_COPIES < 1 ? 1 : THREADS / LINE_COPIES;
    static constexpr int COPIES_B = MAJOR_B == K_MAJOR ? BN / ROW_STEP : BK / LINE_STEP;
    static_assert(MAJOR_B == K_MAJOR || (THREADS % LINE_COPIES == 0 && BK % LINE_STEP == 0), "threads share rows evenly");

    const GatherParams &p;
    const GatherRows &rows;
    int group, n0;
    int segment, steps_left;   // of the segment
    int row, col;              // of this thread's first copy of a k-major tile: row, element
    const T *x, *w;
    int base[COPIES_A];        // element of the pixel under tap 0, from x on
    int origin[COPIES_A];      // its coordinates, vertical in the upper half
    Taps taps[2];
    int c, r, s;               // channel and tap of this thread's copies of k-major rows
    int k;                     // first k of the step, within the segment

    __device__ __forceinline__ GatherLoader(const GatherParams &p, const GatherRows &rows, int group, int n0, int step)
        : p(p), rows(rows), group(group), n0(n0) {
        row = threadIdx.x / ROW_COPIES, col = threadIdx.x % ROW_COPIES * WIDTH;
        segment = 0;
        for (;; segment++) {
            const int steps = steps_of(segment);
            if (step < steps || segment + 1 == p.segments) {
                steps_left = steps - step;
                break;
            }
            step -= steps;
        }
        enter(step);
    }

    // Steps of K in a segment, for this block's phase.
    __device__ __forceinline__ int steps_of(int i) const { return segment_steps(p, rows, i); }
    static __device__ __forceinline__ int segment_steps(const GatherParams &p, const GatherRows &rows, int i) {
        const Segment &g = p.segment[i];
        const int k = taps_of(g.axis[0], rows.phase[0]).count * taps_of(g.axis[1], rows.phase[1]).count *
                      static_cast<int>(g.channels.divisor);
        return (k + BK - 1) / BK;
    }

    // Prepares a segment from step `step` of it on.
    __device__ __forceinline__ void enter(int step) {
        const Segment &g = p.segment[segment];
        const int channels = g.channels.divisor, height = g.axis[0].size, width = g.axis[1].size;
        int first_image, y, xx;
        rows.split(0, first_image, y, xx);
        const int per_image = height * width * g.pixel;
        x = g.x + static_cast<i64>(rows.unit * rows.images + first_image) * per_image + group * channels;
#pragma unroll
        for (int i = 0; i < 2; i++) taps[i] = taps_of(g.axis[i], rows.phase[i]);
        w = g.w + (rows.phase[0] * rows.phases[1] + rows.phase[1]) * g.w_phase +
            static_cast<i64>(group) * (MAJOR_B == K_MAJOR ? p.columns : channels) * g.w_row;
#pragma unroll
        for (int i = 0; i < COPIES_A; i++) {
            int image;
            const bool there = rows.split(row + i * ROW_STEP, image, y, xx);
            y = y * g.axis[0].step + taps[0].first, xx = xx * g.axis[1].step + taps[1].first;
            base[i] = (image - first_image) * per_image + (y * width + xx) * g.pixel;
            // A row that does not exist lies so far above the image that no tap reaches it.
            origin[i] = there ? (y << 16) | (xx & 0xffff) : static_cast<int>(0x80000000u);
        }
        k = step * BK;
        const int tap = (k + col) / channels;
        c = k + col - tap * channels;
        r = taps[1].count > 0 ? tap / taps[1].count : 0, s = tap - r * taps[1].count;
    }

    __device__ __forceinline__ int weight_tap(int r, int s, const Segment &g) const {
        return (taps[0].weight0 + r * g.axis[0].weight_step) * g.axis[1].kernel + taps[1].weight0 +
               s * g.axis[1].weight_step;
    }

    __device__ __forceinline__ void load(u8 *stage) {
        if (steps_left == 0) {
            segment++;
            steps_left = steps_of(segment);
            enter(0);
        }
        steps_left--;
        const Segment &g = p.segment[segment];
        const int channels = g.channels.divisor, height = g.axis[0].size, width = g.axis[1].size;
        const bool k_there = r < taps[0].count;
        const int dy = r * g.axis[0].tap_step, dx = s * g.axis[1].tap_step;
        const int shift = (dy * width + dx) * g.pixel + c;
#pragma unroll
        for (int i = 0; i < COPIES_A; i++) {
            const int y = (origin[i] >> 16) + dy, xx = static_cast<short>(origin[i]) + dx;
            const bool there = k_there && static_cast<u32>(y) < static_cast<u32>(height) &&
                               static_cast<u32>(xx) < static_cast<u32>(width);
            copy_to_shared<T, WIDTH>(stage + TileA::element(row + i * ROW_STEP, col), x + (there ? base[i] + shift : 0),
                                     there);
        }
        stage += TileA::BYTES;
        if constexpr (MAJOR_B == K_MAJOR) {
            const T *from = w + static_cast<i64>(n0 + row) * g.w_row + weight_tap(r, s, g) * g.w_tap + c;
#pragma unroll
            for (int i = 0; i < COPIES_B; i++) {
                const bool there = k_there && n0 + row + i * ROW_STEP < p.columns;
                copy_to_shared<T, WIDTH>(stage + TileB::element(row + i * ROW_STEP, col),
                                         there ? from + i * ROW_STEP * g.w_row : w, there);
            }
        } else {
            const int line = threadIdx.x / LINE_COPIES, n = threadIdx.x % LINE_COPIES * WIDTH;
            const bool n_there = n0 + n < p.columns;
            const int all = taps[0].count * taps[1].count * channels;
            // Where channels fill whole steps all lines of a step belong to one tap.
            const bool uniform = channels % BK == 0;
            u32 c_line = k;
            int at = 0;
            if (uniform) at = line_base(c_line, g);
#pragma unroll
            for (int i = 0; i < COPIES_B; i++) {
                const int q = line + i * LINE_STEP;
                if (!uniform) {
                    c_line = k + q;
                    at = line_base(c_line, g) - q * g.w_row;
                }
                const bool there = n_there && k + q < all;
                copy_to_shared<T, WIDTH>(stage + TileB::element(q, n), there ? w + at + q * g.w_row + n0 + n : w, there);
            }
        }
        k += BK;
        c += BK;
        while (c >= channels && r < taps[0].count) {
            c -= channels;
            if (++s == taps[1].count) s = 0, r++;
        }
    }

    // Element of k (tap and channel) in the weight; `k` becomes the channel.
    __device__ __forceinline__ int line_base(u32 &k, const Segment &g) const {
        const int tap = g.channels.split(k);
        const int r = tap / taps[1].count;
        return static_cast<int>(k) * g.w_row + weight_tap(r, tap - r * taps[1].count, g) * g.w_tap;
    }
};

// The whole kernel. Grid: (tiles of n fastest, tiles of m, units), (phases of a group, groups), splits.
template <Major MAJOR_B> static __device__ __forceinline__ void gather_gemm(const GatherParams &p) {
    extern __shared__ __align__(128) u8 shared[];
    const int tile_n = blockIdx.x % p.tiles_n, rest = blockIdx.x / p.tiles_n;
    const int tile_m = rest % p.tiles_m, unit = rest / p.tiles_m;
    const int phases = p.phases[0] * p.phases[1];
    const int phase = blockIdx.y % phases, group = blockIdx.y / phases;

    GatherRows rows;
    rows.unit = unit, rows.images = p.unit_images;
    rows.full_height = p.height, rows.full_width = p.width;
    rows.phases[0] = p.phases[0], rows.phases[1] = p.phases[1];
    rows.phase[0] = phase / p.phases[1], rows.phase[1] = phase % p.phases[1];
    rows.height = (p.height - rows.phase[0] + p.phases[0] - 1) / p.phases[0];
    rows.width = (p.width - rows.phase[1] + p.phases[1] - 1) / p.phases[1];
    rows.count = rows.images * rows.height * rows.width;
    rows.first = tile_m * BM;
    rows.stats_row = (unit * phases + phase) * p.tiles_m + tile_m;
    // A phase may have fewer pixels than the first one.
    if (rows.first >= rows.count) return;

    int steps = 0;
    for (int i = 0; i < p.segments; i++) steps += GatherLoader<MAJOR_B>::segment_steps(p, rows, i);
    const int begin = min(static_cast<int>(blockIdx.z) * p.steps_per_split, steps);
    const int mine = min(steps - begin, p.steps_per_split);

    const int n0 = tile_n * BN, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    GatherLoader<MAJOR_B> loader(p, rows, group, n0, begin);
    WarpProduct<K_MAJOR, MAJOR_B> product(warp, lane);
    gemm_mainloop(product, loader, shared, mine);

    if (p.splits > 1) {
        const i64 results = static_cast<i64>(p.images) * p.height * p.width;
        float *to = p.out.partial + blockIdx.z * results * p.out.channels + group * p.columns;
        store_sums(product, shared, to, p.out.channels, n0, p.columns, rows);
    } else {
        store_output(product, shared, p.out, n0, p.columns, group * p.columns, rows);
    }
}
