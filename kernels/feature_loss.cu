// The feature loss: whitened mean squared error and attention transfer over all levels.
//
// Maths: y = sum over levels of (mse_weight MSE + at_weight AT) / levels, with
//     MSE = mean of (s - (t - mean) factor)^2, factor = 1 / sqrt(variance + eps), over a sample, or a pixel, or 0 and 1;
//         = (SS - 2 factor ST + factor^2 TT) / n + mean_s^2 from the moments SS, ST, TT about the means;
//     AT  = mean over samples of the distance of q / ||q||, q = sum over c of |a|^p at every pixel;
//     gs  = gy (mse_weight 2 (s - (t - mean) factor) / (levels n) + at_weight slope[pixel] p |s|^(p-1) sign(s) / levels).
// The cosine of s and the whitened t is a by-product.
//
// Memory: s, t, gs [N, H, W, C] of T; what is known of pixels f32 [pixels of all levels]; results f32.
//
//     fwd      block -> a run of pixels of one image -> warps -> 32 / lanes pixels at a time -> lane: 16 bytes of channels
//     samples  block -> an image of a level           total  one block           bwd  as fwd
//     The picture, and why the moments lose no digits, are in tile/feature_loss.cuh.
//
// Numerics: f32 sums of a pixel; moments merged pairwise in f32 within a run and in f64 across runs; maps, their norms and
// the loss in f64 from f32 power sums; gs rounded once, `=`. The same bits in every run, whatever the device.
//
// Limits (H100, predicted; simulated only): fwd 2 sizeof(T) bytes and about 14 operations an element pair, bwd 3 sizeof(T)
// bytes: memory, 3.35 TB/s. Batch 64 with levels 64x64x512 to 8x8x1024 in bf16: 0.74 GB, 0.22 ms, and 1.1 GB, 0.33 ms.
#include "tile/feature_loss.cuh"

#ifndef VEC
#define VEC 1
#endif
#ifndef PER_PIXEL
#define PER_PIXEL 0
#endif
#ifndef POWER
#define POWER 2
#endif

#ifdef PARAMS_BYTES
static_assert(sizeof(feature_loss::Params) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    feature_loss_fwd(const __grid_constant__ feature_loss::Params p) {
    feature_loss::blocks<VEC != 0, true, true, PER_PIXEL != 0, POWER>(p);
}

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    feature_loss_samples(const __grid_constant__ feature_loss::Params p) {
    feature_loss::samples<true, true, PER_PIXEL != 0>(p);
}

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    feature_loss_total(const __grid_constant__ feature_loss::Params p) {
    feature_loss::total(p);
}

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    feature_loss_bwd(const __grid_constant__ feature_loss::Params p) {
    feature_loss::backward<VEC != 0, POWER>(p);
}
