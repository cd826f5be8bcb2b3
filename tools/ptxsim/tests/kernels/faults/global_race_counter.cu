// A counter in global memory, counted up without an atomic.
// RUN: --grid 4 --block 32 --arg buf:i32[1]=zeros

extern "C" __global__ void global_race_counter_bad(int *counter) {
    if (threadIdx.x == 0) *counter += 1; // FAULT: global_race
}

extern "C" __global__ void global_race_counter_good(int *counter) {
    if (threadIdx.x == 0) atomicAdd(counter, 1);
}
