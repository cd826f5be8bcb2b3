// In place: a block reads what its neighbour overwrites.
// RUN: --grid 4 --block 64 --arg buf:f32[256]=iota --arg buf:f32[256]=uninit

extern "C" __global__ void global_race_neighbour_bad(float *x, float *out) {
    int i = blockIdx.x * 64 + threadIdx.x;
    x[i] = 0.5f * x[(i + 64) & 255]; // FAULT: global_race
    out[i] = 1.0f;
}

extern "C" __global__ void global_race_neighbour_good(float *x, float *out) {
    int i = blockIdx.x * 64 + threadIdx.x;
    out[i] = 0.5f * x[(i + 64) & 255];
}
