// What a diffusion network is trained on: from pixels the image, noise, and the mixture that the network sees, in one pass.
//
// Maths: image = p / 127.5 - 1;  noise: element i of the image's random stream, standard normal
//     noisy = signal[n] image + noise_level[n] noise
//
// Memory: pixels u8 [images, size]; keys u32 [images, 4] = key, stream; levels f32 [images, 2] = signal, noise; noisy T, noise
// f32 and clean f32 [images, size], the last one or none.
//
//     grid.y: image      grid.x: 256 chunks of the image's elements
//     block -> 256 threads, thread -> a chunk of four elements, whose noise one Philox block makes: 16 bytes of f32, so that
//     neighbours write neighbouring bytes
//
//         element   0 1 2 3 | 4 5 6 7 | ..
//         thread       0    |    1    | ..
//
// Numerics: f32, one rounding to T at the end, `=`.
//
// Limits (H100, predicted; simulated only): 9 + sizeof(T) bytes an element, 5 + sizeof(T) without the image; about 60 integer
// and 40 float operations that make the noise: memory, 3.35 TB/s.
#include "tile/philox.cuh"
#include "tile/pixels.cuh"
#include "tile/types.cuh"

constexpr int THREADS = 256, E = 4;

// As in Rust: `ops::untaped::q_sample::Params`.
struct QSampleParams {
    const u8 *pixels;
    const uint4 *keys;
    const float2 *levels;
    T *noisy;
    float *noise, *clean;
    int size, pad;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(QSampleParams) == PARAMS_BYTES, "the host passes another struct");
#endif

static __device__ __forceinline__ void store(float *to, const float (&v)[E]) { store_chunk(to, v); }
static __device__ __forceinline__ void store(bf16 *to, const float (&v)[E]) {
    *reinterpret_cast<uint2 *>(to) = make_uint2(ptx::pack_bf16x2(v[0], v[1]), ptx::pack_bf16x2(v[2], v[3]));
}

template <typename Out>
static __device__ __forceinline__ void write(Out *to, const float (&v)[E], int there, bool whole) {
    if (whole) {
        store(to, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < E; i++)
        if (i < there) to[i] = from_float<Out>(v[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS) q_sample_fwd(const __grid_constant__ QSampleParams p) {
    const int image = blockIdx.y, first = (blockIdx.x * THREADS + threadIdx.x) * E, there = p.size - first;
    if (there <= 0) return;
    const bool whole = p.size % E == 0;
    const size_t at = static_cast<size_t>(image) * p.size + first;
    const float2 level = p.levels[image];
    const philox::Stream stream(p.keys[image]);
    const float4 z = philox::normals(stream.block(first / E));
    const float noise[E] = {z.x, z.y, z.z, z.w};
    float clean[E], noisy[E];
    load_pixels(clean, p.pixels + at, there, whole);
#pragma unroll
    for (int i = 0; i < E; i++) {
        clean[i] = fmaf(clean[i], 2.0f / 255.0f, -1.0f);
        noisy[i] = fmaf(level.y, noise[i], level.x * clean[i]);
    }
    write(p.noisy + at, noisy, there, whole);
    write(p.noise + at, noise, there, whole);
    if (p.clean) write(p.clean + at, clean, there, whole);
}
