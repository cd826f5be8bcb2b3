// Concatenation along the channels, and its gradient, which cuts them apart.
//
// Maths: join    y[r, o_k + c] = x_k[r, c],   o_k = columns before input k
//        split   gx_k[r, c] = gy[r, o_k + c]
//
// Memory: x_k [rows, C_k], y [rows, C_0 + C_1 + ..] of T; up to eight inputs, which lie in y from column `start` on. VEC: every C_k,
// and what stands before them, is a multiple of a chunk of 16 bytes.
//
//     block -> chunks of columns of y x rows of one part; a thread belongs to one column of one input: see tile/rows.cuh
//
// Numerics: a copy; `=`.
//
// Limits (H100, predicted; simulated only): 2 * sizeof(T) bytes an element: memory, 3.35 TB/s.
#include "tile/rows.cuh"

#ifndef VEC
#define VEC 1
#endif

constexpr int MOST = 8;

// As in Rust: `ops::concat::Params`.
struct ConcatParams {
    u64 whole;
    u64 part[MOST];      // null: nothing to copy
    int first[MOST + 1]; // column, counted from `start`, of each part and of the end
    int total;           // columns of `whole`
    int start;           // column of `whole` where the parts begin
    int pad;
    RowLayout at;        // its columns are those of the parts
};

#ifdef PARAMS_BYTES
static_assert(sizeof(ConcatParams) == PARAMS_BYTES, "the host passes another struct");
#endif

template <bool JOIN> static __device__ __forceinline__ void copy(const ConcatParams &p) {
    constexpr int EACH = elementwise::EACH<T, VEC != 0>, TURNS = 4;
    const rows::Share share(p.at, EACH);
    if (!share.exists) return;
    T *part = reinterpret_cast<T *>(p.part[0]);
    int first = 0, width = p.first[1];
#pragma unroll
    for (int k = 1; k < MOST; ++k)
        if (share.column >= p.first[k] && p.first[k] < p.first[k + 1])
            part = reinterpret_cast<T *>(p.part[k]), first = p.first[k], width = p.first[k + 1] - first;
    if (!part) return;
    T *const whole = reinterpret_cast<T *>(p.whole) + p.start + share.column;
    part += share.column - first;
    const T *const in = JOIN ? part : whole;
    T *const out = JOIN ? whole : part;
    const i64 in_step = JOIN ? width : p.total, out_step = JOIN ? p.total : width;
    const int slots = p.at.slots;
    for (i64 row = share.begin; row < share.end; row += TURNS * slots) {
        elementwise::Raw<T, VEC != 0> v[TURNS];
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn)
            if (row + turn * slots < share.end) v[turn] = elementwise::read<VEC != 0>(in + (row + turn * slots) * in_step);
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            if (row + turn * slots >= share.end) break;
            elementwise::write(out + (row + turn * slots) * out_step, v[turn]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) concat_join(const __grid_constant__ ConcatParams p) {
    copy<true>(p);
}

extern "C" __global__ void __launch_bounds__(elementwise::THREADS, 4) concat_split(const __grid_constant__ ConcatParams p) {
    copy<false>(p);
}
