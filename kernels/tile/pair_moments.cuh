// Count, means, and sums of squared deviations and of their products, of pairs (s, t) of numbers.
//
// Merged pairwise (Chan, Golub and LeVeque 1983; Pebay 2008 for the products), never as E[x^2] - E[x]^2.
#pragma once
#include "tile/types.cuh"

// A share of a count. Division by the book would call a subroutine, for which registers are spilled.
static __device__ __forceinline__ float share_of(float part, float all) { return __fdividef(part, all); }
static __device__ __forceinline__ double share_of(double part, double all) { return part / all; }

template <typename R> struct PairMoments {
    R count, s, t, ss, tt, st;

    __device__ __forceinline__ void merge(const PairMoments &o) {
        const R all = count + o.count;
        // Nothing and nothing: f32 goes on with a share of 0, which costs less than a branch.
        if (sizeof(R) == sizeof(double) && !(all > R(0))) return;
        const R part = all > R(0) ? share_of(o.count, all) : R(0), weight = count * part;
        const R ds = o.s - s, dt = o.t - t;
        s += ds * part, t += dt * part;
        ss += o.ss + ds * ds * weight, tt += o.tt + dt * dt * weight, st += o.st + ds * dt * weight;
        count = all;
    }
};

// Merges those of the `lanes` threads (a power of two) that stand together in a warp; the first has the result.
static __device__ __forceinline__ void merge_lanes(PairMoments<float> &m, int lanes) {
    for (int o = lanes >> 1; o > 0; o >>= 1) {
        PairMoments<float> other;
        other.count = __shfl_xor_sync(0xffffffffu, m.count, o);
        other.s = __shfl_xor_sync(0xffffffffu, m.s, o);
        other.t = __shfl_xor_sync(0xffffffffu, m.t, o);
        other.ss = __shfl_xor_sync(0xffffffffu, m.ss, o);
        other.tt = __shfl_xor_sync(0xffffffffu, m.tt, o);
        other.st = __shfl_xor_sync(0xffffffffu, m.st, o);
        m.merge(other);
    }
}
