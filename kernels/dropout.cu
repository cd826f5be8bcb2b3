// Dropout, whose gradient is dropout of the gradient.
//
// Maths: fwd        y[i] = word i of the stream < threshold ? 0 : x[i] factor
//        channels   y[s, r, c] likewise, by word s columns + c
//
// Memory: x, y of T; fwd [elems], channels [segments, rows, columns].
//
//     fwd        block -> 1024 chunks of 16 bytes, thread -> 4 of them, one or two blocks of Philox each: see tile/elementwise.cuh
//     channels   block -> chunks of columns x rows of a segment; a thread draws the mask of its chunk once: see tile/rows.cuh
//
// Numerics: one multiplication in f32, rounded to T; `=`. The words are those of the host, and the same for T = bf16 and f32. What is
// dropped is 0 even where x is no number.
//
// Limits (H100, predicted; simulated only): 2 * sizeof(T) bytes an element. A block of Philox takes some 100 instructions for four
// elements: fwd in bf16 is bound by their issue as much as by memory, 3.35 TB/s.
#include "tile/philox.cuh"
#include "tile/rows.cuh"

#ifndef PASS
#define PASS 0 // 0 fwd, 1 channels: what the parameter is
#endif
#ifndef VEC
#define VEC 1
#endif

// As in Rust: `ops::dropout::Params`.
template <typename Where> struct DropoutParams {
    philox::Key key;
    u32 threshold;
    float factor;
    Where at;
};

#if PASS == 0
typedef DropoutParams<MapParams> Params;
#else
typedef DropoutParams<RowMapParams> Params;
#endif

#ifdef PARAMS_BYTES
static_assert(sizeof(Params) == PARAMS_BYTES, "the host passes another struct");
#endif

#if PASS == 0
extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) dropout_fwd(const __grid_constant__ Params p) {
    const philox::Stream stream(p.key);
    const u32 threshold = p.threshold;
    const float factor = p.factor;
    elementwise::map<1>(p.at, [=](auto &v, i64 at) {
#pragma unroll
        for (int i = 0; i < Chunk<T>::SIZE; i += 4) {
            const uint4 words = stream.block((at + i) >> 2);
            v[0][i] = words.x < threshold ? 0.0f : v[0][i] * factor;
            v[0][i + 1] = words.y < threshold ? 0.0f : v[0][i + 1] * factor;
            v[0][i + 2] = words.z < threshold ? 0.0f : v[0][i + 2] * factor;
            v[0][i + 3] = words.w < threshold ? 0.0f : v[0][i + 3] * factor;
        }
    });
}
#else
extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) dropout_channels(const __grid_constant__ Params p) {
    constexpr int EACH = elementwise::EACH<T, VEC != 0>;
    const philox::Stream stream(p.key);
    const u32 threshold = p.threshold;
    const float factor = p.factor;
    const i64 columns = p.at.at.columns;
    rows::map<VEC != 0>(
        reinterpret_cast<const T *>(p.at.in), reinterpret_cast<T *>(p.at.out), p.at.at,
        [=](auto &own, i64 segment, int column) {
#pragma unroll
            for (int i = 0; i < EACH; ++i)
                own[i] = stream.word(segment * columns + column + i) < threshold ? 0.0f : factor;
        },
        [](auto &v, const auto &own) {
#pragma unroll
            for (int i = 0; i < EACH; ++i) v[i] = own[i] == 0.0f ? 0.0f : v[i] * own[i];
        });
}
#endif
