// Two floats at once from an odd element on.
// RUN: --grid 1 --block 32 --arg buf:f32[65]=iota --arg buf:f32[32]=uninit

extern "C" __global__ void misaligned_bad(const float *in, float *out) {
    const float *pair = in + 2 * threadIdx.x + 1;
    float2 v = *reinterpret_cast<const float2 *>(pair); // FAULT: misaligned
    out[threadIdx.x] = v.x + v.y;
}

extern "C" __global__ void misaligned_good(const float *in, float *out) {
    const float *pair = in + 2 * threadIdx.x;
    float2 v = *reinterpret_cast<const float2 *>(pair);
    out[threadIdx.x] = v.x + v.y;
}
