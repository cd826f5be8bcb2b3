// A tile in shared memory, read one element beyond its end, which is the end of the block's shared memory.
// RUN: --grid 1 --block 128 --arg buf:f32[128]=iota --arg buf:f32[128]=uninit

extern "C" __global__ void oob_shared_bad(const float *in, float *out) {
    __shared__ float tile[128];
    tile[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    float next = tile[threadIdx.x + 1]; // FAULT: out_of_bounds
    out[threadIdx.x] = next;
}

extern "C" __global__ void oob_shared_good(const float *in, float *out) {
    __shared__ float tile[129];
    tile[threadIdx.x] = in[threadIdx.x];
    if (threadIdx.x == 0) tile[128] = 0.0f;
    __syncthreads();
    float next = tile[threadIdx.x + 1];
    out[threadIdx.x] = next;
}
