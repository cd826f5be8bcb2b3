// From pixels to what the two networks see: the student's normalised image and the teacher's noisy one, in one pass.
//
// Maths: p = pixel of 0..255 at (top + y, left + x, c), mirrored left to right where the place says so.
//     student[n, y, x, c] = p scale[c] + shift[c]               scale = 1 / (255 std), shift = -mean / std
//     teacher[n, y, x, c] = signal (p / 127.5 - 1) + noise z    z: element (y width + x) 3 + c of the image's random stream
//
// Memory: pixels u8 [images, source_height, source_width, 3]; places i32 [images, 3] = top, left, mirrored, or none (the
// whole image); keys u32 [images, 4] = key, stream, or none (no noise); student, teacher T [images, height, width, 3].
//
//     grid.y: image      grid.x: 256 chunks of the image's elements
//     block -> 256 threads, thread -> a chunk of 16 bytes of results: 8 elements of bf16, 4 of f32
//
//         element   0 1 2 3 | 4 5 6 7 | ..          one Philox block makes the noise of four elements
//         channel   0 1 2 0 | 1 2 0 1 | ..
//
// Numerics: f32, one rounding to T at the end. A place outside of the source is moved inside.
//
// Limits (H100, predicted; simulated only): 1 + 2 sizeof(T) bytes an element; about 60 integer and 40 float operations of
// which 20 make the noise: memory, 3.35 TB/s, in bf16 close to the limit of the integer units. Without places the pixels of a
// chunk are loaded at once; with them byte by byte, out of the first-level cache but for the first touch.
#include "tile/philox.cuh"
#include "tile/pixels.cuh"
#include "tile/types.cuh"

constexpr int THREADS = 256, E = Chunk<T>::SIZE;

// As in Rust: `ops::untaped::encode_images::Params`.
struct EncodeImagesParams {
    const u8 *pixels;
    const int *places;
    const uint4 *keys;
    T *student, *teacher;
    int source_height, source_width, height, width;
    float scale[3], shift[3];
    float signal, noise;
};

#ifdef PARAMS_BYTES
static_assert(sizeof(EncodeImagesParams) == PARAMS_BYTES, "the host passes another struct");
#endif

// The pixels of `there` elements from `first` on of a part of an image.
static __device__ __forceinline__ void gather_pixels(float (&v)[E], const EncodeImagesParams &p, int image, int first,
                                                     int there) {
    const int *const place = p.places + 3 * image;
    const int top = max(0, min(place[0], p.source_height - p.height));
    const int left = max(0, min(place[1], p.source_width - p.width));
    const bool mirrored = place[2] != 0;
    const u8 *const from = p.pixels + 3ll * image * p.source_height * p.source_width;
    int c = first % 3, x = first / 3 % p.width, y = first / 3 / p.width;
#pragma unroll
    for (int i = 0; i < E; i++) {
        const int column = left + (mirrored ? p.width - 1 - x : x);
        v[i] = i < there ? static_cast<float>(from[3ll * ((top + y) * p.source_width + column) + c]) : 0.0f;
        if (++c == 3) c = 0, x++;
        if (x == p.width) x = 0, y++;
    }
}

static __device__ __forceinline__ void write(T *to, const float (&v)[E], int there, bool whole) {
    if (whole) {
        store_chunk(to, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < E; i++)
        if (i < there) to[i] = from_float<T>(v[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encode_images_fwd(const __grid_constant__ EncodeImagesParams p) {
    const int size = 3 * p.height * p.width, image = blockIdx.y;
    const int first = (blockIdx.x * THREADS + threadIdx.x) * E, there = size - first;
    if (there <= 0) return;
    const bool whole = size % E == 0;
    const size_t at = static_cast<size_t>(image) * size + first;
    float pixel[E];
    if (p.places)
        gather_pixels(pixel, p, image, first, there);
    else
        load_pixels(pixel, p.pixels + at, there, whole);

    float student[E], teacher[E];
    int c = first % 3;
#pragma unroll
    for (int i = 0; i < E; i++) {
        const float scale = c == 0 ? p.scale[0] : c == 1 ? p.scale[1] : p.scale[2];
        const float shift = c == 0 ? p.shift[0] : c == 1 ? p.shift[1] : p.shift[2];
        student[i] = fmaf(pixel[i], scale, shift);
        teacher[i] = p.signal * fmaf(pixel[i], 2.0f / 255.0f, -1.0f);
        c = c == 2 ? 0 : c + 1;
    }
    if (p.keys) {
        const uint4 key = p.keys[image];
#pragma unroll
        for (int i = 0; i < E; i += 4) {
            const uint4 w = philox::philox4x32_10(make_uint4((first + i) / 4, 0, key.z, key.w), make_uint2(key.x, key.y));
            const float2 a = philox::normal_pair(w.x, w.y), b = philox::normal_pair(w.z, w.w);
            teacher[i] = fmaf(p.noise, a.x, teacher[i]), teacher[i + 1] = fmaf(p.noise, a.y, teacher[i + 1]);
            teacher[i + 2] = fmaf(p.noise, b.x, teacher[i + 2]), teacher[i + 3] = fmaf(p.noise, b.y, teacher[i + 3]);
        }
    }
    write(p.student + at, student, there, whole);
    write(p.teacher + at, teacher, there, whole);
}
