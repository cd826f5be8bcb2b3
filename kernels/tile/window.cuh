// Pixels that gather from a window of other pixels: pooling and resizing, and their gradients.
//
//     to [n, to_h, to_w, c]  <-  from [n, from_h, from_w, c]
//
//     block -> tile_h x tile_w pixels of `to` of one image, `lanes` chunks of channels
//
//         from                        shared memory                  to
//         +-----------------+
//         |   +---------+   |        pixel -> lanes chunks          +------+
//         |   | region  |   |  --->  of 16 bytes             --->   | tile |
//         |   +---------+   |                                       +------+
//         +-----------------+
//
//     thread -> chunks of the region, 256 apart; then pixels of the tile, whatever they have in common
//
// Windows overlap, and so the region of a tile is read from memory once, by accesses of 16 bytes. Where no region fits
// (STAGED 0: an image that becomes one pixel), threads read from memory themselves.
#pragma once
#include "tile/elementwise.cuh"

#ifndef VEC
#define VEC 1
#endif
#ifndef STAGED
#define STAGED 1
#endif

// As in Rust: `ops::elementwise::window::WindowParams`.
struct WindowParams {
    u64 from, positions, to; // positions: of a maximum in its window, one byte, in the order of the pooled pixels
    int from_h, from_w, to_h, to_w, channels;
    int lanes;               // chunks of channels of a block: a power of two
    int tile_h, tile_w;
    int down, right, across; // tiles of an image, blocks across its channels
    int room;                // chunks of a region at most
    int kernel, stride, pad;
    float scale;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(WindowParams) == PARAMS_BYTES, "the host passes another struct");
#endif

namespace window {

constexpr int THREADS = elementwise::THREADS, EACH = elementwise::EACH<T, VEC != 0>;

// begin <= i < end
struct Range {
    int begin, end;
};

// EACH bytes: positions of a chunk.
template <int N> struct Packed {};
template <> struct Packed<1> {
    typedef u8 Type;
};
template <> struct Packed<4> {
    typedef u32 Type;
};
template <> struct Packed<8> {
    typedef uint2 Type;
};
typedef typename Packed<EACH>::Type PackedPositions;

static __device__ __forceinline__ u32 position(u8 v, int) { return v; }
static __device__ __forceinline__ u32 position(u32 v, int i) { return v >> (8 * i) & 255; }
static __device__ __forceinline__ u32 position(uint2 v, int i) { return (i < 4 ? v.x : v.y) >> (8 * (i & 3)) & 255; }

static __device__ __forceinline__ void pack_positions(u8 &to, const u32 (&v)[1]) { to = static_cast<u8>(v[0]); }
static __device__ __forceinline__ void pack_positions(u32 &to, const u32 (&v)[4]) {
    to = v[0] | v[1] << 8 | v[2] << 16 | v[3] << 24;
}
static __device__ __forceinline__ void pack_positions(uint2 &to, const u32 (&v)[8]) {
    to = make_uint2(v[0] | v[1] << 8 | v[2] << 16 | v[3] << 24, v[4] | v[5] << 8 | v[6] << 16 | v[7] << 24);
}

typedef elementwise::Raw<T, VEC != 0> Unit;

// The pixels of one image, and of one chunk of channels, that a thread reads.
struct Source {
    const T *image;             // first pixel of the image, this thread's channel
    const u8 *image_positions;
    const Unit *region;         // first pixel of the region, this thread's lane
    const PackedPositions *region_positions;
    int top, left, region_w;    // of the region
    int from_w, channels, lanes;

    __device__ __forceinline__ void read(float (&v)[EACH], int y, int x) const {
        if (STAGED)
            elementwise::widen(v, region[((y - top) * region_w + x - left) * lanes]);
        else
            elementwise::widen(v, elementwise::read<VEC != 0>(image + (static_cast<i64>(y) * from_w + x) * channels));
    }
    __device__ __forceinline__ PackedPositions positions(int y, int x) const {
        if (STAGED) return region_positions[((y - top) * region_w + x - left) * lanes];
        return *reinterpret_cast<const PackedPositions *>(image_positions + (static_cast<i64>(y) * from_w + x) * channels);
    }
};

// Lets make(v, source, y, x, at) fill in pixel (y, x) of `to`, whose chunk begins at element `at`, for every pixel and chunk.
// The pixels first .. last of `to` read those of `from` in down(first, last), and across in right(first, last). POSITIONS:
// they come with `from`.
template <bool POSITIONS, typename Down, typename Right, typename Make>
static __device__ __forceinline__ void gather(const WindowParams &p, Down down, Right right, Make make) {
    u32 block = blockIdx.x;
    const u32 across = block % p.across;
    block /= p.across;
    const int x0 = block % p.right * p.tile_w;
    block /= p.right;
    const int y0 = block % p.down * p.tile_h;
    const i64 image = block / p.down;
    const int x1 = min(x0 + p.tile_w, p.to_w), y1 = min(y0 + p.tile_h, p.to_h);
    const int shift = 31 - __clz(p.lanes), lane = threadIdx.x & (p.lanes - 1);
    const int channel = (across * p.lanes + lane) * EACH;
    // The lane of a thread stays: 256 is a multiple of `lanes`.
    const bool there = channel < p.channels;
    const i64 start = image * p.from_h * p.from_w * p.channels + channel;
    Source source;
    source.image = reinterpret_cast<const T *>(p.from) + start;
    source.image_positions = reinterpret_cast<const u8 *>(p.positions) + start;
    source.from_w = p.from_w, source.channels = p.channels, source.lanes = p.lanes;
#if STAGED
    extern __shared__ __align__(16) unsigned char memory[];
    Unit *const region = reinterpret_cast<Unit *>(memory) + lane;
    PackedPositions *const marks = reinterpret_cast<PackedPositions *>(memory + p.room * sizeof(Unit)) + lane;
    const Range ys = down(y0, y1 - 1), xs = right(x0, x1 - 1);
    const int width = max(xs.end - xs.begin, 0), pixels = max(ys.end - ys.begin, 0) * width;
    if (there) {
#pragma unroll 4
        for (int i = threadIdx.x >> shift; i < pixels; i += THREADS >> shift) {
            const int y = i / width;
            const i64 at = (static_cast<i64>(ys.begin + y) * p.from_w + xs.begin + i - y * width) * p.channels;
            region[i << shift] = elementwise::read<VEC != 0>(source.image + at);
            if (POSITIONS) marks[i << shift] = *reinterpret_cast<const PackedPositions *>(source.image_positions + at);
        }
    }
    source.region = region, source.region_positions = marks;
    source.top = ys.begin, source.left = xs.begin, source.region_w = width;
    __syncthreads();
#endif
    if (!there) return;
    const int tile_w = x1 - x0, count = (y1 - y0) * tile_w;
    T *const to = reinterpret_cast<T *>(p.to);
    for (int i = threadIdx.x >> shift; i < count; i += THREADS >> shift) {
        const int row = i / tile_w, y = y0 + row, x = x0 + i - row * tile_w;
        const i64 at = ((image * p.to_h + y) * p.to_w + x) * p.channels + channel;
        float v[EACH];
        make(v, source, y, x, at);
        elementwise::store(to + at, v);
    }
}

// One axis of a pooling window: as `support::Window` in Rust.
struct Pool {
    int kernel, stride, pad;

    // Pixels of an axis of `len` that output `o` covers.
    __device__ __forceinline__ Range covered(int o, int len) const {
        return Range{max(o * stride - pad, 0), min(o * stride - pad + kernel, len)};
    }
    // Outputs, out of `outputs`, that cover pixel `i`.
    __device__ __forceinline__ Range covering(int i, int outputs) const {
        const int before = i + pad + 1 - kernel;
        return Range{before <= 0 ? 0 : (before + stride - 1) / stride, min((i + pad) / stride + 1, outputs)};
    }
};

} // namespace window
