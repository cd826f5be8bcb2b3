// Mean squared error against a whitened teacher feature.
//
// Maths: y = mean of (s - (t - mean) factor)^2, factor = 1 / sqrt(variance + eps), over a sample, or a pixel, or 0 and 1;
//          = (SS - 2 factor ST + factor^2 TT) / n + mean_s^2 from the moments SS, ST, TT about the means;
//     gs = gy 2 (s - (t - mean) factor) / n.
//
// Memory: s, t, gs [N, H, W, C] of T; mean and factor f32 [groups, 2]; y f32.
//
//     fwd      block -> a run of pixels of one image -> warps -> 32 / lanes pixels at a time -> lane: 16 bytes of channels
//     samples  block -> an image                       total  one block           bwd  as fwd
//     The picture is in tile/feature_loss.cuh: this is one level of it, without attention transfer.
//
// Numerics: moments merged pairwise in f32 within a run and in f64 across runs; gs rounded once, `=`. The same bits in every
// run, whatever the device.
//
// Limits (H100, predicted; simulated only): fwd 2 sizeof(T) bytes and about 12 operations an element, bwd 3 sizeof(T) bytes:
// memory, 3.35 TB/s.
#include "tile/feature_loss.cuh"

#ifndef VEC
#define VEC 1
#endif
#ifndef PER_PIXEL
#define PER_PIXEL 0
#endif

#ifdef PARAMS_BYTES
static_assert(sizeof(feature_loss::Params) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    whiten_mse_fwd(const __grid_constant__ feature_loss::Params p) {
    feature_loss::blocks<VEC != 0, true, false, PER_PIXEL != 0, 2>(p);
}

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    whiten_mse_samples(const __grid_constant__ feature_loss::Params p) {
    feature_loss::samples<true, false, PER_PIXEL != 0>(p);
}

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    whiten_mse_total(const __grid_constant__ feature_loss::Params p) {
    feature_loss::total(p);
}

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    whiten_mse_bwd(const __grid_constant__ feature_loss::Params p) {
    feature_loss::backward<VEC != 0, 2>(p);
}
