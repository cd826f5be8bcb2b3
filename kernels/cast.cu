// Change of the element type between f32 and bf16.
//
// Maths: out[i] = in[i], rounded to nearest even where the type narrows. NaN and infinities stay what they are.
//
// Memory: in and out [elems], aligned to 16 bytes.
//
//     block -> 2048 elements; two neighbouring threads -> 16 of them
//
//             f32   | 16 bytes s0 | s1 | s2 | s3 |       even thread: s0, s2     odd thread: s1, s3
//             bf16  |   16 bytes t0    |   t1    |       even thread: t0         odd thread: t1
//
//     What one has read for the other goes over by shuffles, so that every access of a warp is a run of whole sectors.
//
// Numerics: one rounding to bf16; `=`.
//
// Limits (H100, predicted; simulated only): 6 bytes an element, no arithmetic: memory, 3.35 TB/s.
#include "tile/elementwise.cuh"

struct CastParams {
    u64 in, out;
    i64 elems;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(CastParams) == PARAMS_BYTES, "the host passes another struct");
#endif

namespace {

constexpr int EACH = 8;

struct Place {
    i64 pair, own; // first element of the pair of threads, and of this thread
    bool whole;    // the pair has all of its 16 elements
    bool odd;
    u32 mask;

    __device__ __forceinline__ explicit Place(i64 elems) {
        const i64 thread = static_cast<i64>(blockIdx.x) * elementwise::THREADS + threadIdx.x;
        own = thread * EACH, pair = (thread >> 1) * (2 * EACH);
        whole = pair + 2 * EACH <= elems;
        odd = threadIdx.x & 1;
        mask = 3u << (threadIdx.x & 30);
    }
};

template <typename From, typename To>
__device__ __forceinline__ void one_by_one(const From *in, To *out, i64 begin, i64 elems) {
    for (i64 i = begin; i < min(begin + EACH, elems); ++i) out[i] = from_float<To>(to_float(in[i]));
}

} // namespace

extern "C" __global__ void __launch_bounds__(elementwise::THREADS) cast_to_bf16(const __grid_constant__ CastParams p) {
    const float *const in = reinterpret_cast<const float *>(p.in);
    bf16 *const out = reinterpret_cast<bf16 *>(p.out);
    const Place at(p.elems);
    if (!at.whole) return one_by_one(in, out, at.own, p.elems);
    float a[4], b[4];
    load_chunk(a, in + at.pair + 4 * at.odd);
    load_chunk(b, in + at.pair + 8 + 4 * at.odd);
    const u32 a0 = ptx::pack_bf16x2(a[0], a[1]), a1 = ptx::pack_bf16x2(a[2], a[3]);
    const u32 b0 = ptx::pack_bf16x2(b[0], b[1]), b1 = ptx::pack_bf16x2(b[2], b[3]);
    const u32 got0 = __shfl_xor_sync(at.mask, at.odd ? a0 : b0, 1), got1 = __shfl_xor_sync(at.mask, at.odd ? a1 : b1, 1);
    ptx::store_global_16(out + at.own, at.odd ? make_uint4(got0, got1, b0, b1) : make_uint4(a0, a1, got0, got1));
}

extern "C" __global__ void __launch_bounds__(elementwise::THREADS) cast_to_f32(const __grid_constant__ CastParams p) {
    const bf16 *const in = reinterpret_cast<const bf16 *>(p.in);
    float *const out = reinterpret_cast<float *>(p.out);
    const Place at(p.elems);
    if (!at.whole) return one_by_one(in, out, at.own, p.elems);
    const uint4 v = ptx::load_global_16(in + at.own);
    const u32 got0 = __shfl_xor_sync(at.mask, at.odd ? v.x : v.z, 1), got1 = __shfl_xor_sync(at.mask, at.odd ? v.y : v.w, 1);
    const u32 a0 = at.odd ? got0 : v.x, a1 = at.odd ? got1 : v.y, b0 = at.odd ? v.z : got0, b1 = at.odd ? v.w : got1;
    const float a[4] = {ptx::bf16_low(a0), ptx::bf16_high(a0), ptx::bf16_low(a1), ptx::bf16_high(a1)};
    const float b[4] = {ptx::bf16_low(b0), ptx::bf16_high(b0), ptx::bf16_low(b1), ptx::bf16_high(b1)};
    store_chunk(out + at.pair + 4 * at.odd, a);
    store_chunk(out + at.pair + 8 + 4 * at.odd, b);
}
