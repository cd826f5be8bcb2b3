// Merges the statistics of tiles into those of images.
//
//     [images, tiles, channels] (mean, m2)  --a thread a channel, tiles in order-->  [images, channels] (mean, m2)
//
// m2 is the sum of squared deviations from the mean: a group norm merges channels into groups the same way.
#pragma once
#include "tile/output.cuh"

constexpr int STATISTICS_THREADS = 128;

// As in Rust: `implicit_gemm::params::Statistics`.
struct StatisticsParams {
    const float2 *tiles;
    float2 *images;
    int channels;
    int tiles_per_phase, phases;
    int pixels_per_tile, pixels_per_phase;
    int blocks; // of an image
};

static __device__ __forceinline__ void merge_statistics(const StatisticsParams &p) {
    const int channel = blockIdx.x % p.blocks * STATISTICS_THREADS + threadIdx.x;
    if (channel >= p.channels) return;
    const i64 image = blockIdx.x / p.blocks;
    const float2 *from = p.tiles + image * p.phases * p.tiles_per_phase * p.channels + channel;
    Moments all = {0.0f, 0.0f, 0.0f};
    for (int phase = 0; phase < p.phases; phase++)
        for (int t = 0; t < p.tiles_per_phase; t++, from += p.channels)
            all.merge(static_cast<float>(min(p.pixels_per_tile, p.pixels_per_phase - t * p.pixels_per_tile)), from->x, from->y);
    p.images[image * p.channels + channel] = make_float2(all.mean, all.m2);
}
