// Moves buffers towards values: the running statistics of all batch norms, in one launch.
//
// Maths: buffer[i] = (1 - weight) buffer[i] + weight value[i], for each of up to 128 pairs.
//
// Memory: f32 vectors of `count` elements each, aligned to 16 bytes; the addresses are part of the parameter, which a graph
// keeps as it was captured.
//
//     grid.x: pair      block -> 128 threads, thread -> chunks of four elements, 128 chunks apart; the last elements one by one
//
// Numerics: f32, two products and a sum, each rounded: what the CPU does.
//
// Limits (H100, predicted; simulated only): 12 bytes an element; 53 norms of ResNet-50 have 53 120 of them: a launch's latency.
#include "tile/types.cuh"

constexpr int THREADS = 128, MOST = 128;

// As in Rust: `ops::untaped::running_average::Pair`.
struct Pair {
    float *buffer;
    const float *value;
    int count;
    float weight;
};

// As in Rust: `ops::untaped::running_average::Params`.
struct RunningAverageParams {
    Pair pairs[MOST];
};

#ifdef PARAMS_BYTES
static_assert(sizeof(RunningAverageParams) == PARAMS_BYTES, "the host passes another struct");
#endif

static __device__ __forceinline__ float moved(float buffer, float value, float weight) {
    return __fadd_rn(__fmul_rn(__fsub_rn(1.0f, weight), buffer), __fmul_rn(weight, value));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    running_average_update(const __grid_constant__ RunningAverageParams p) {
    const Pair &pair = p.pairs[blockIdx.x];
    const int whole = pair.count / 4 * 4;
    for (int i = threadIdx.x * 4; i < whole; i += THREADS * 4) {
        float v[4];
        load_chunk(v, pair.value + i);
        const float4 old = *reinterpret_cast<const float4 *>(pair.buffer + i);
        v[0] = moved(old.x, v[0], pair.weight), v[1] = moved(old.y, v[1], pair.weight);
        v[2] = moved(old.z, v[2], pair.weight), v[3] = moved(old.w, v[3], pair.weight);
        store_chunk(pair.buffer + i, v);
    }
    const int i = whole + threadIdx.x;
    if (i < pair.count) pair.buffer[i] = moved(pair.buffer[i], pair.value[i], pair.weight);
}
