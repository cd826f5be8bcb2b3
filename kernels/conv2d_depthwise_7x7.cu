// Depthwise 7x7 convolution in f32, stride 1, no dilation.
//
// Maths, for every channel alone:
//
//     fwd     y[i, j]  = bias + sum over r, s of x[i + r - pad, j + s - pad] * w[r, s]
//     dgrad   the same with x = dy, w turned by half a turn, pad' = 6 - pad
//     wgrad   dw[r, s] = sum over i, j of dy[i, j] * x[i + r - pad, j + s - pad]
//
// Memory: x [n, h, w, c], y [n, ho, wo, c], w [c, 7, 7], c a multiple of 4; bias [c] or null; wgrad writes [gridDim.y, c, 7, 7],
// which conv2d_depthwise_wgrad_reduce adds up.
//
//     grid.x: 32 channels     grid.y: workers, four warps each
//     warp: a strip of STRIP output columns, `segment` rows long, row by row; warps do not wait for each other
//     lane: one channel, its 49 weights (wgrad: its 49 sums) in registers
//
//        row q of x, STRIP + 6 pixels of 128 bytes, by cp.async into a ring of rows in shared memory
//          |  a lane reads its channel: one wavefront a pixel
//          v
//        sum[0]  sum[1]  ..  sum[6]     7 rows of outputs in work; row q adds tap row r to sum[r] and moves it to sum[r + 1],
//          '--->---'--->- .. --->'--> out    which costs nothing: the first product of a sum has another destination
//
//     wgrad takes two rows of x at a time against the eight rows of dy that they meet, which halves the reads of dy.
//
// Numerics: f32 FMA in the order of tap rows, then taps; `=`. wgrad adds in the order of pixels, strips and warps, then workers in
// theirs: the same bits in every run.
//
// Limits (H100, predicted; simulated only): 8 bytes an element allow 0.42e12 elements/s at 3.35 TB/s; 49 FMA an element
// 0.60e12/s, of which 0.70 to 0.73 of the loop's instructions leave 0.43e12/s: memory and arithmetic end together. Neighbouring strips
// read 13/7 or 14/8 of x, from the second-level cache. wgrad: 65 to 70 % FMA, 0.40e12/s, bound by arithmetic.
#include "ptx/cp_async.cuh"
#include "tile/depthwise.cuh"

#ifndef STRIP
#define STRIP 7
#endif
static_assert(!T_BF16, "bf16 goes through conv2d_depthwise_mma.cu");

namespace {

constexpr int K = 7, TAPS = K * K, WARPS = 4, THREADS = 32 * WARPS, CHANNELS = depthwise::CHANNELS;
// Columns that a strip of outputs reads.
constexpr int REACH = STRIP + K - 1;

struct Map {
    const float *data;
    int h, w;
};

// What a warp works on: STRIP columns from `column` on and the rows [begin, end) of an image.
struct Task {
    int image, column, begin, end;

    __device__ __forceinline__ Task(int index, int rows, int columns, int segment) {
        const int strips = (columns + STRIP - 1) / STRIP, segments = (rows + segment - 1) / segment;
        column = index % strips * STRIP;
        index /= strips;
        begin = index % segments * segment;
        end = min(begin + segment, rows);
        image = index / segments;
    }
};

static __device__ __forceinline__ int tasks_of(int images, int rows, int columns, int segment) {
    return images * ((columns + STRIP - 1) / STRIP) * ((rows + segment - 1) / segment);
}

// One warp's copies of COUNT pixels of a row, 32 channels each: a lane has always the same four channels, and pixels
// lane / 8, + 4, + 8, ..
template <int COUNT> struct RowCopy {
    static constexpr int TURNS = (COUNT + 3) / 4;
    const float *image;
    int pitch, h, first, width, channels;
    bool exists;

    __device__ __forceinline__ RowCopy(const Map &map, int c, int number, int column) {
        const int lane = threadIdx.x % 32, channel = blockIdx.x * CHANNELS + lane % 8 * 4;
        exists = channel < c;
        pitch = map.w * c, h = map.h, width = map.w, channels = c;
        first = column + lane / 8;
        image = map.data + static_cast<size_t>(number) * map.h * pitch + (exists ? channel : 0);
    }

    // Zeros outside the image.
    __device__ __forceinline__ void start(u32 to, int row) const {
        const int lane = threadIdx.x % 32;
        const bool inside = exists && static_cast<u32>(row) < static_cast<u32>(h);
        const float *const from = image + static_cast<i64>(inside ? row : 0) * pitch;
#pragma unroll
        for (int i = 0; i < TURNS; ++i) {
            const int x = first + 4 * i;
            const bool valid = inside && static_cast<u32>(x) < static_cast<u32>(width);
            if (COUNT % 4 == 0 || i + 1 < TURNS || lane / 8 < COUNT % 4)
                ptx::cp_async<16>(to + (4 * i * 8 + lane) * 16, from + (valid ? x * channels : 0), valid);
        }
    }
};

// ---- forward and dgrad ----

constexpr int RING = 4;

template <bool FLIP>
static __device__ __forceinline__ void correlate(const Map &from, const Map &to, float *out, int images, int c, int pad_h,
                                                 int pad_w, int segment, const float *weight, const float *bias) {
    extern __shared__ __align__(16) float shared[];
    constexpr int WARP_FLOATS = (RING * REACH + STRIP) * CHANNELS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int c0 = blockIdx.x * CHANNELS, channels = min(CHANNELS, c - c0);

    depthwise::each_weight<true>(weight + static_cast<size_t>(c0) * TAPS, channels, TAPS, [&](int channel, int tap, float v) {
        shared[channel * TAPS + (FLIP ? TAPS - 1 - tap : tap)] = v;
    });
    float *const biases = shared + CHANNELS * TAPS;
    if (threadIdx.x < CHANNELS / 4) {
        float v[4] = {};
        if (bias && static_cast<int>(threadIdx.x) * 4 < channels) load_chunk(v, bias + c0 + threadIdx.x * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) biases[threadIdx.x * 4 + i] = v[i];
    }
    __syncthreads();
    float w[K][K];
#pragma unroll
    for (int r = 0; r < K; ++r)
#pragma unroll
        for (int s = 0; s < K; ++s) w[r][s] = lane < channels ? shared[lane * TAPS + r * K + s] : 0.0f;
    const float start = biases[lane];
    __syncthreads();

    float *const ring = shared + warp * WARP_FLOATS, *const result = ring + RING * REACH * CHANNELS;
    const u32 ring_address = ptx::shared_address(ring);
    const int tasks = tasks_of(images, to.h, to.w, segment);
    for (int number = blockIdx.y * WARPS + warp; number < tasks; number += gridDim.y * WARPS) {
        const Task task(number, to.h, to.w, segment);
        const RowCopy<REACH> copy(from, c, task.image, task.column - pad_w);
        // Rows above the image would add nothing to sums that all are still at their start.
        const int top = task.begin - pad_h, rows = task.end - task.begin + K - 1, skip = min(max(-top, 0), K - 1);
        float *const image = out + static_cast<size_t>(task.image) * to.h * to.w * c + c0;
#pragma unroll
        for (int i = 0; i < RING - 1; ++i) {
            copy.start(ring_address + (skip + i) % RING * (REACH * CHANNELS * 4), top + skip + i);
            ptx::cp_async_commit();
        }

        // sum[r]: the row of outputs that row q of the inputs reaches through tap row r.
        float sum[K][STRIP];
#pragma unroll
        for (int r = 0; r < K; ++r)
#pragma unroll
            for (int j = 0; j < STRIP; ++j) sum[r][j] = start;
#pragma unroll 1
        for (int q = skip; q < rows; ++q) {
            ptx::cp_async_wait<RING - 2>();
            __syncwarp();
            if (q + RING - 1 < rows)
                copy.start(ring_address + (q + RING - 1) % RING * (REACH * CHANNELS * 4), top + q + RING - 1);
            ptx::cp_async_commit();

            const float *const x = ring + q % RING * (REACH * CHANNELS) + lane;
            float v[REACH];
#pragma unroll
            for (int j = 0; j < REACH; ++j) v[j] = x[j * CHANNELS];
            // From the last tap row down, so that each sum moves on by one row as it is added to.
#pragma unroll
            for (int r = K - 1; r >= 0; --r)
#pragma unroll
                for (int j = 0; j < STRIP; ++j) {
                    float a = r > 0 ? sum[r - 1][j] : start;
#pragma unroll
                    for (int s = 0; s < K; ++s) a = fmaf(v[j + s], w[r][s], a);
                    sum[r][j] = a;
                }

            if (q < K - 1) continue;
#pragma unroll
            for (int j = 0; j < STRIP; ++j) result[j * CHANNELS + lane] = sum[K - 1][j];
            __syncwarp();
            float *const row = image + static_cast<i64>(task.begin + q - (K - 1)) * to.w * c;
#pragma unroll
            for (int i = 0; i < (STRIP + 3) / 4; ++i) {
                const int j = lane / 8 + 4 * i, x = task.column + j;
                if (j < STRIP && x < to.w && lane % 8 * 4 < channels)
                    ptx::store_global_16(row + x * c + lane % 8 * 4, reinterpret_cast<const uint4 *>(result)[4 * i * 8 + lane]);
            }
        }
        // The next task's first copies go where rows past the end may be on their way, and where other lanes may still read.
        ptx::cp_async_wait<0>();
        __syncwarp();
    }
}

// ---- wgrad ----

// Rows of gradients that a pair of input rows meets, and those kept: two pairs ahead.
constexpr int Y_ROWS = K + 1, Y_RING = Y_ROWS + 2, X_RING = 4;
constexpr int WGRAD_WARP_FLOATS = (X_RING * REACH + Y_RING * STRIP) * CHANNELS;
static_assert(WARPS * WGRAD_WARP_FLOATS >= WARPS * CHANNELS * TAPS, "the sums of the warps fit");

static __device__ __forceinline__ void correlate_gradients(const Map &x, const Map &y, int images, int c, int pad_h, int pad_w,
                                                           int segment, float *partial) {
    extern __shared__ __align__(16) float shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int c0 = blockIdx.x * CHANNELS, channels = min(CHANNELS, c - c0);
    float *const xs = shared + warp * WGRAD_WARP_FLOATS, *const ys = xs + X_RING * REACH * CHANNELS;
    const u32 x_address = ptx::shared_address(xs), y_address = ptx::shared_address(ys);

    float sum[K][K] = {};
    const int tasks = tasks_of(images, x.h, y.w, segment);
    for (int number = blockIdx.y * WARPS + warp; number < tasks; number += gridDim.y * WARPS) {
        const Task task(number, x.h, y.w, segment);
        const RowCopy<REACH> copy_x(x, c, task.image, task.column - pad_w);
        const RowCopy<STRIP> copy_y(y, c, task.image, task.column);
        // Input row begin + 2i + p meets the gradients' rows top + 2i + p .. + 6; row number l of them is kept at l % Y_RING.
        const int top = task.begin + pad_h - (K - 1), pairs = (task.end - task.begin + 1) / 2;
        auto start_x = [&](int i) {
#pragma unroll
            for (int p = 0; p < 2; ++p) {
                const int row = task.begin + 2 * i + p;
                copy_x.start(x_address + (2 * i + p) % X_RING * (REACH * CHANNELS * 4), row < task.end ? row : -1);
            }
        };
        auto start_y = [&](int l) {
#pragma unroll
            for (int p = 0; p < 2; ++p)
                copy_y.start(y_address + (l + p) % Y_RING * (STRIP * CHANNELS * 4), top + l + p);
        };
        start_x(0);
#pragma unroll 1
        for (int l = 0; l < Y_ROWS; l += 2) start_y(l);
        ptx::cp_async_commit();
#pragma unroll 1
        for (int i = 0; i < pairs; ++i) {
            if (i + 1 < pairs) {
                start_x(i + 1);
                start_y(2 * i + Y_ROWS);
            }
            ptx::cp_async_commit();
            ptx::cp_async_wait<1>();
            __syncwarp();
            const float *const at = xs + 2 * i % X_RING * (REACH * CHANNELS) + lane;
            float v[2][REACH];
#pragma unroll
            for (int p = 0; p < 2; ++p)
#pragma unroll
                for (int j = 0; j < REACH; ++j) v[p][j] = at[(p * REACH + j) * CHANNELS];
            int slot = 2 * i % Y_RING;
#pragma unroll
            for (int l = 0; l < Y_ROWS; ++l) {
                const float *const gradients = ys + slot * (STRIP * CHANNELS) + lane;
                float g[STRIP];
#pragma unroll
                for (int j = 0; j < STRIP; ++j) g[j] = gradients[j * CHANNELS];
#pragma unroll
                for (int p = 0; p < 2; ++p) {
                    const int r = p + K - 1 - l;
                    if (r < 0 || r >= K) continue;
#pragma unroll
                    for (int j = 0; j < STRIP; ++j)
#pragma unroll
                        for (int s = 0; s < K; ++s) sum[r][s] = fmaf(g[j], v[p][j + s], sum[r][s]);
                }
                slot = slot + 1 == Y_RING ? 0 : slot + 1;
            }
            __syncwarp();
        }
    }
    ptx::cp_async_wait<0>();
    __syncthreads();

    // The warps' sums, [channel][r][s] as in memory, added in the order of the warps.
#pragma unroll
    for (int r = 0; r < K; ++r)
#pragma unroll
        for (int s = 0; s < K; ++s) shared[(warp * CHANNELS + lane) * TAPS + r * K + s] = sum[r][s];
    __syncthreads();
    float *const to = partial + (static_cast<size_t>(blockIdx.y) * c + c0) * TAPS;
    for (int i = threadIdx.x * 4; i < channels * TAPS; i += THREADS * 4) {
        float4 total = *reinterpret_cast<const float4 *>(shared + i);
#pragma unroll
        for (int k = 1; k < WARPS; ++k) {
            const float4 more = *reinterpret_cast<const float4 *>(shared + k * CHANNELS * TAPS + i);
            total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
        }
        const float v[4] = {total.x, total.y, total.z, total.w};
        store_chunk(to + i, v);
    }
}

} // namespace

#if PASS_FWD
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    conv2d_depthwise_7x7_fwd(const __grid_constant__ DepthwiseParams p) {
    const Map x = {reinterpret_cast<const float *>(p.x), p.h, p.w}, y = {nullptr, p.ho, p.wo};
    correlate<false>(x, y, reinterpret_cast<float *>(p.y), p.n, p.c, p.pad_h, p.pad_w, p.segment,
                     reinterpret_cast<const float *>(p.weight), reinterpret_cast<const float *>(p.bias));
}
#elif PASS_DGRAD
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    conv2d_depthwise_7x7_dgrad(const __grid_constant__ DepthwiseParams p) {
    const Map y = {reinterpret_cast<const float *>(p.y), p.ho, p.wo}, x = {nullptr, p.h, p.w};
    correlate<true>(y, x, reinterpret_cast<float *>(p.x), p.n, p.c, K - 1 - p.pad_h, K - 1 - p.pad_w, p.segment,
                    reinterpret_cast<const float *>(p.weight), nullptr);
}
#elif PASS_WGRAD
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    conv2d_depthwise_7x7_wgrad(const __grid_constant__ DepthwiseParams p) {
    const Map x = {reinterpret_cast<const float *>(p.x), p.h, p.w}, y = {reinterpret_cast<const float *>(p.y), p.ho, p.wo};
    correlate_gradients(x, y, p.n, p.c, p.pad_h, p.pad_w, p.segment, reinterpret_cast<float *>(p.weight));
}
#endif
