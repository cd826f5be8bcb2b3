// A block hands a value to another one by a flag, without the fences that order value and flag.
// RUN: --grid 2 --block 32 --cooperative --arg buf:f32[32]=zeros --arg buf:u32[1]=zeros --arg buf:f32[32]=uninit

extern "C" __global__ void flag_without_fence_bad(float *box, unsigned *flag, float *out) {
    int t = threadIdx.x;
    if (blockIdx.x == 0) {
        box[t] = 1.0f + t; // ALSO: global_race
        __syncwarp();
        if (t == 0) atomicExch(flag, 1u);
    } else {
        if (t == 0) {
            while (atomicAdd(flag, 0u) == 0) {
            }
        }
        __syncwarp();
        float v = box[t]; // FAULT: global_race
        out[t] = v;
    }
}

extern "C" __global__ void flag_without_fence_good(float *box, unsigned *flag, float *out) {
    int t = threadIdx.x;
    if (blockIdx.x == 0) {
        box[t] = 1.0f + t;
        __syncwarp();
        if (t == 0) {
            __threadfence();
            atomicExch(flag, 1u);
        }
    } else {
        if (t == 0) {
            while (atomicAdd(flag, 0u) == 0) {
            }
            __threadfence();
        }
        __syncwarp();
        float v = box[t];
        out[t] = v;
    }
}
