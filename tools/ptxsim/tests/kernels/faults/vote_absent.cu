// A vote of all lanes in a loop that some have left.
// RUN: --grid 1 --block 32 --arg buf:i32[32]=iota --arg buf:i32[32]=uninit

extern "C" __global__ void vote_absent_bad(const int *in, int *out) {
    int v = in[threadIdx.x], rounds = 0;
#pragma unroll 1
    while (v > 0) {
        v -= 8;
        rounds += __popc(__ballot_sync(0xffffffffu, v > 4)); // FAULT: absent_lane
    }
    out[threadIdx.x] = rounds;
}

extern "C" __global__ void vote_absent_good(const int *in, int *out) {
    int v = in[threadIdx.x], rounds = 0;
#pragma unroll 1
    while (__any_sync(0xffffffffu, v > 0)) {
        v -= 8;
        rounds += __popc(__ballot_sync(0xffffffffu, v > 4));
    }
    out[threadIdx.x] = rounds;
}
