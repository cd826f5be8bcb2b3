// Softmax over the last axis, and its gradient.
//
// Maths:   fwd   y = exp(x - max x) / sum exp(x - max x)        bwd   gx = y (gy - sum gy y), y from x again
//
// Memory: x, gy, out (y or gx) [rows, width] of T. VEC: width is a multiple of a chunk of 16 bytes.
//
//     ROW_THREADS = 32:  block -> 8 rows, warp -> a row          ROW_THREADS = 256:  block -> a row
//     thread -> every ROW_THREADS-th chunk (element without VEC) of its row
//
//        |c0 c1 .. c31|c0 c1 .. c31|..    the first HELD turns stay in registers; what lies beyond is read again by every
//         turn 0       turn 1             step (largest, sum, result), from the second-level cache
//
// Numerics: f32; a thread adds its own elements in order, then 32 lanes by a tree, then warps in order; `=`. The same bits in
// every run. -inf counts as 0; NaN, +inf or nothing but -inf make their row NaN.
//
// Limits (H100, predicted; simulated only): fwd 2, bwd 3 times sizeof(T) bytes an element: memory, 3.35 TB/s.
#include "ptx/ex2.cuh"
#include "tile/piece.cuh"

// As in Rust: `softmax::Params`.
struct SoftmaxParams {
    const T *x;
    const T *gy; // in the backward pass
    T *out;
    int rows, width;
};
#ifdef PARAMS_BYTES
static_assert(sizeof(SoftmaxParams) == PARAMS_BYTES, "the host passes another struct");
#endif

namespace {

constexpr int THREADS = 256, WARPS = ROW_THREADS / 32, HELD = 4, E = VEC ? Chunk<T>::SIZE : 1;
static_assert(ROW_THREADS == 32 || ROW_THREADS == THREADS, "a row belongs to a warp or to a block");
constexpr float LOG2_E = 1.4426950408889634f;

struct Add {
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};
// The larger number; NaN gives way.
struct Larger {
    static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
};

// Merges the values of all threads of a row. `board` is written by one call only.
template <typename Merge> static __device__ __forceinline__ float merge(float v, float *board) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v = Merge::of(v, __shfl_xor_sync(~0u, v, step));
    if constexpr (WARPS > 1) {
        if (threadIdx.x % 32 == 0) board[threadIdx.x / 32] = v;
        __syncthreads();
        v = board[0];
#pragma unroll
        for (int w = 1; w < WARPS; w++) v = Merge::of(v, board[w]);
    }
    return v;
}

// This thread's part of a row.
struct Row {
    i64 at;
    int column, width;
    bool exists;

    __device__ __forceinline__ explicit Row(const SoftmaxParams &p) {
        const i64 row = static_cast<i64>(blockIdx.x) * (THREADS / ROW_THREADS) + threadIdx.x / ROW_THREADS;
        exists = row < p.rows, width = p.width;
        at = row * width, column = threadIdx.x % ROW_THREADS * E;
    }

    // Calls f(i, first element) for the turns that are held.
    template <typename F> __device__ __forceinline__ void held(const F &f) const {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int j = column + i * ROW_THREADS * E;
            if (j < width) f(i, at + j);
        }
    }

    // Calls f(first element) for the turns beyond.
    template <typename F> __device__ __forceinline__ void beyond(const F &f) const {
#pragma unroll 1
        for (int j = column + HELD * ROW_THREADS * E; j < width; j += ROW_THREADS * E) f(at + j);
    }

    // The largest element of the row, of which v is held.
    __device__ __forceinline__ float largest(const float (&v)[HELD][E], const T *from, float *board) const {
        float top = -__uint_as_float(0x7f800000u);
        const auto compare = [&](const float(&piece)[E]) {
#pragma unroll
            for (int k = 0; k < E; k++) top = fmaxf(top, piece[k]);
        };
        held([&](int i, i64) { compare(v[i]); });
        beyond([&](i64 first) {
            float piece[E];
            load_piece(piece, from + first);
            compare(piece);
        });
        return merge<Larger>(top, board);
    }
};

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 2) softmax_fwd(const __grid_constant__ SoftmaxParams p) {
    __shared__ float board[2][WARPS];
    const Row row(p);
    if (!row.exists) return;
    float x[HELD][E];
    row.held([&](int i, i64 at) { load_piece(x[i], p.x + at); });
    const float largest = row.largest(x, p.x, board[0]);

    float sum = 0.0f;
    const auto exponentiate = [&](float(&v)[E]) {
#pragma unroll
        for (int k = 0; k < E; k++) {
            v[k] = ptx::ex2((v[k] - largest) * LOG2_E);
            sum += v[k];
        }
    };
    row.held([&](int i, i64) { exponentiate(x[i]); });
    row.beyond([&](i64 at) {
        float v[E];
        load_piece(v, p.x + at);
        exponentiate(v);
    });
    const float inverse = 1.0f / merge<Add>(sum, board[1]);

    const auto write = [&](float(&v)[E], i64 at) {
#pragma unroll
        for (int k = 0; k < E; k++) v[k] *= inverse;
        store_piece(p.out + at, v);
    };
    row.held([&](int i, i64 at) { write(x[i], at); });
    row.beyond([&](i64 at) {
        float v[E];
        load_piece(v, p.x + at);
        exponentiate(v);
        write(v, at);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) softmax_bwd(const __grid_constant__ SoftmaxParams p) {
    __shared__ float board[3][WARPS];
    const Row row(p);
    if (!row.exists) return;
    float y[HELD][E], g[HELD][E];
    row.held([&](int i, i64 at) { load_piece(y[i], p.x + at), load_piece(g[i], p.gy + at); });
    const float largest = row.largest(y, p.x, board[0]);

    // Of the exponentials, and of what they weigh.
    float sum = 0.0f, dot = 0.0f;
    const auto weigh = [&](float(&a)[E], const float(&b)[E]) {
#pragma unroll
        for (int k = 0; k < E; k++) {
            a[k] = ptx::ex2((a[k] - largest) * LOG2_E);
            sum += a[k], dot = fmaf(a[k], b[k], dot);
        }
    };
    row.held([&](int i, i64) { weigh(y[i], g[i]); });
    row.beyond([&](i64 at) {
        float a[E], b[E];
        load_piece(a, p.x + at), load_piece(b, p.gy + at);
        weigh(a, b);
    });
    const float inverse = 1.0f / merge<Add>(sum, board[1]), mean = merge<Add>(dot, board[2]) * inverse;

    const auto write = [&](const float(&a)[E], float(&b)[E], i64 at) {
#pragma unroll
        for (int k = 0; k < E; k++) b[k] = a[k] * inverse * (b[k] - mean);
        store_piece(p.out + at, b);
    };
    row.held([&](int i, i64 at) { write(y[i], g[i], at); });
    row.beyond([&](i64 at) {
        float a[E], b[E];
        load_piece(a, p.x + at), load_piece(b, p.gy + at);
        weigh(a, b);
        write(a, b, at);
    });
}
