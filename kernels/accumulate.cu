// Takes gradients over: the first part of a batch sets the sums, the others add to them.
//
// Maths: sum[i] = gradient[i], or sum[i] += gradient[i]; squares[chunk] = sum over the chunk of sum[i]^2.
//
// Memory: gradients f32, anywhere, their addresses in the parameter (null: the step gives this tensor none); sums f32, one
// for each tensor; tables of tile/multi_tensor.cuh.
//
//     launch -> up to SOURCES tensors      grid.x -> their chunks      block -> 256 threads over a chunk of 8192 elements
//
// Numerics: f32 sums in the order of the parts; squares f64, thread by thread, then lanes, then warps. The squares are those
// of the sums so far: after the last part, what the norm is made of.
//
// Limits (H100, predicted; simulated only): 8 bytes an element (12 when adding), 2 operations in f64: memory, 3.35 TB/s.
#include "tile/multi_tensor.cuh"

// As in Rust: `untaped::accumulate::SOURCES`.
constexpr int SOURCES = 256;

// As in Rust: `untaped::accumulate::Params`.
struct AccumulateParams {
    const TensorChunk *chunks;
    const TensorInfo *tensors;
    int *present;
    double *squares;
    int first_tensor, first_chunk;
    int sets; // the first part
    int pad;
    float *sources[SOURCES];
};

#ifdef PARAMS_BYTES
static_assert(sizeof(AccumulateParams) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(UPDATE_THREADS)
    accumulate_add(const __grid_constant__ AccumulateParams p) {
    const int index = p.first_chunk + blockIdx.x;
    TensorChunk c = p.chunks[index];
    const int begin = index - p.tensors[c.tensor].first_chunk;
    float *const source = p.sources[c.tensor - p.first_tensor];
    if (begin == 0 && threadIdx.x == 0) p.present[c.tensor] = source != nullptr;
    if (!source) {
        if (threadIdx.x == 0) p.squares[index] = 0.0;
        return;
    }
    // The gradient takes the value's place: nobody reads that here.
    c.data[0] = source + static_cast<size_t>(begin) * CHUNK;
    double2 sums;
    if (p.sets)
        sums = visit<VALUE, GRAD, false>(c, [](Item &e) { return make_float2(e.grad = e.value, 0.0f); });
    else
        sums = visit<VALUE | GRAD, GRAD, false>(c, [](Item &e) { return make_float2(e.grad += e.value, 0.0f); });
    sums = block_sum<UPDATE_THREADS>(sums);
    if (threadIdx.x == 0) p.squares[index] = sums.x;
}
