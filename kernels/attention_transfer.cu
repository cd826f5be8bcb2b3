// Attention transfer: the distance between the normalised spatial energy maps of student and teacher.
//
// Maths: q = sum over c of |a|^p at every pixel; u = q / max(||q||, 1e-12) over the pixels of a sample; y = mean over samples of
//     ||us - ut||, or mean over samples and pixels of (us - ut)^2; gs = gy slope[pixel] p |s|^(p-1) sign(s), where slope is
//     the derivative of y with respect to the student's q.
//
// Memory: s, gs [N, H, W, Cs], t [N, H, W, Ct] of T; q and slope f32 [N, H, W]; y f32.
//
//     fwd      block -> a run of pixels of one image -> warps -> 32 / lanes pixels at a time -> lane: 16 bytes of channels
//     samples  block -> an image                       total  one block           bwd  as fwd
//     The picture is in tile/feature_loss.cuh: this is one level of it, without moments.
//
// Numerics: f32 power sums; norms, distances and slopes in f64 from them; gs rounded once, `=`. The same bits in every run,
// whatever the device.
//
// Limits (H100, predicted; simulated only): fwd sizeof(T) bytes and 2 operations (p = 2) an element of both maps, bwd
// 2 sizeof(T) bytes an element of the student's: memory, 3.35 TB/s.
#include "tile/feature_loss.cuh"

#ifndef VEC
#define VEC 1
#endif
#ifndef POWER
#define POWER 2
#endif

#ifdef PARAMS_BYTES
static_assert(sizeof(feature_loss::Params) == PARAMS_BYTES, "the host passes another struct");
#endif

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    attention_transfer_fwd(const __grid_constant__ feature_loss::Params p) {
    feature_loss::blocks<VEC != 0, false, true, false, POWER>(p);
}

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    attention_transfer_samples(const __grid_constant__ feature_loss::Params p) {
    feature_loss::samples<false, true, false>(p);
}

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    attention_transfer_total(const __grid_constant__ feature_loss::Params p) {
    feature_loss::total(p);
}

extern "C" __global__ void __launch_bounds__(feature_loss::THREADS)
    attention_transfer_bwd(const __grid_constant__ feature_loss::Params p) {
    feature_loss::backward<VEC != 0, POWER>(p);
}
