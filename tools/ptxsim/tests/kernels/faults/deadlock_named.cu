// A named barrier for 96 threads in a block of 64. The twin has a warp that makes and a warp that takes, each waiting
// for the other on a barrier of its own.
// RUN: --grid 1 --block 64 --arg buf:f32[128]=iota --arg buf:f32[128]=uninit --arg i32:4

extern "C" __global__ void deadlock_named_bad(const float *in, float *out, int rounds) {
    __shared__ float tile[64];
    tile[threadIdx.x] = in[threadIdx.x];
    asm volatile("bar.sync 1, 96;" ::: "memory"); // FAULT: deadlock
    out[threadIdx.x] = tile[63 - threadIdx.x] * rounds;
}

extern "C" __global__ void deadlock_named_good(const float *in, float *out, int rounds) {
    __shared__ float tile[32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == 0) {
        for (int k = 0; k < rounds; k++) {
            if (k > 0) asm volatile("bar.sync 2, 64;" ::: "memory");
            tile[lane] = in[k * 32 + lane];
            asm volatile("bar.arrive 1, 64;" ::: "memory");
        }
    } else {
        for (int k = 0; k < rounds; k++) {
            asm volatile("bar.sync 1, 64;" ::: "memory");
            out[k * 32 + lane] = tile[31 - lane];
            if (k + 1 < rounds) asm volatile("bar.arrive 2, 64;" ::: "memory");
        }
    }
}
