// cp.async: copies from global to shared memory that the thread does not wait for (PTX ISA, "Data Movement and
// Conversion Instructions: cp.async"; sm_80 and later).
#pragma once
#include "ptx/memory.cuh"

namespace ptx {

// Copies BYTES (4, 8 or 16) where `valid` holds and writes as many zeros where it does not; `from` is then not read.
// 16 bytes bypass the first-level cache: every byte is used once by a block.
template <int BYTES> static __device__ __forceinline__ void cp_async(u32 to, const void *from, bool valid) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    const int bytes = valid ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(bytes)
                     : "memory");
}

// Closes the group of all copies since the last call.
static __device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of the latest groups are still on their way.
template <int PENDING> static __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

} // namespace ptx
