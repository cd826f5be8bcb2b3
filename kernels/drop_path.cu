// Stochastic depth, whose gradient is the same of the gradient.
//
// Maths: y[n, i] = u < rate ? 0 : x[n, i] factor, where u in (0, 1) is element n of the stream
//
// Memory: x, y [samples, count] of T. VEC: count is a multiple of a chunk of 16 bytes.
//
//     grid.x: samples * blocks of a sample     block -> 1024 chunks of its sample (1024 elements without VEC), thread -> 4 of them:
//     see tile/elementwise.cuh. A sample that is dropped is not read.
//
// Numerics: one multiplication in f32, rounded to T; `=`. The words are those of the host. What is dropped is 0 even where x is no
// number.
//
// Limits (H100, predicted; simulated only): 2 * sizeof(T) bytes an element that is kept, one that is dropped: memory, 3.35 TB/s.
#include "tile/elementwise.cuh"
#include "tile/philox.cuh"

#ifndef VEC
#define VEC 1
#endif

// As in Rust: `ops::drop_path::Params`.
struct DropPathParams {
    philox::Key key;
    u64 in, out;
    i64 count;  // elements of a sample
    int blocks; // of a sample
    float rate, factor;
    int pad;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(DropPathParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) drop_path_fwd(const __grid_constant__ DropPathParams p) {
    const u32 sample = blockIdx.x / p.blocks, block = blockIdx.x % p.blocks;
    const bool dropped = philox::unit(philox::Stream(p.key).word(sample)) < p.rate;
    const float factor = p.factor;
    const T *const in = reinterpret_cast<const T *>(p.in) + sample * p.count;
    T *const out = reinterpret_cast<T *>(p.out) + sample * p.count;
#if VEC
    if (dropped) {
        constexpr int SIZE = Chunk<T>::SIZE;
        const float zeros[SIZE] = {};
        const i64 first = (static_cast<i64>(block) * (elementwise::THREADS * elementwise::TURNS) + threadIdx.x) * SIZE;
#pragma unroll
        for (int turn = 0; turn < elementwise::TURNS; ++turn) {
            const i64 at = first + turn * (elementwise::THREADS * SIZE);
            if (at < p.count) store_chunk(out + at, zeros);
        }
        return;
    }
    const MapParams kept = {{reinterpret_cast<u64>(in), 0}, reinterpret_cast<u64>(out), p.count};
    elementwise::map<1>(
        kept,
        [=](auto &v, i64) {
#pragma unroll
            for (int i = 0; i < Chunk<T>::SIZE; ++i) v[0][i] *= factor;
        },
        block);
#else
    const i64 first = static_cast<i64>(block) * (elementwise::THREADS * elementwise::TURNS) + threadIdx.x;
#pragma unroll
    for (int turn = 0; turn < elementwise::TURNS; ++turn) {
        const i64 at = first + turn * elementwise::THREADS;
        if (at < p.count) out[at] = from_float<T>(dropped ? 0.0f : to_float(in[at]) * factor);
    }
#endif
}
