// A tile of ROWS rows of COLS elements in shared memory, without bank conflicts.
//
// The 32 banks are 128 bytes wide: eight chunks of 16 bytes. What is read at a time is one chunk of each of eight
// successive rows (ldmatrix, vector loads along k) or eight successive chunks of one row (vector loads along m or n).
// Both touch every bank once if the chunk's place in the row is XORed with bits of the row's number:
//
//     rows of 128 bytes or more      rows of 64 bytes              rows of 32 bytes
//     row 0  |0|1|2|3|4|5|6|7|       row 0,1 |0|1|2|3|0|1|2|3|     row 0..3 |0|1|0|1|0|1|0|1|
//     row 1  |1|0|3|2|5|4|7|6|       row 2,3 |1|0|3|2|1|0|3|2|     row 4..7 |1|0|1|0|1|0|1|0|
//     row 2  |2|3|0|1|6|7|4|5|       row 4,5 |2|3|0|1|2|3|0|1|
//     ..                             row 6,7 |3|2|1|0|3|2|1|0|
#pragma once
#include "ptx/cp_async.cuh"
#include "tile/types.cuh"

template <typename E, int ROWS, int COLS> struct SmemTile {
    static constexpr int ROW_BYTES = COLS * static_cast<int>(sizeof(E));
    static constexpr int CHUNKS = ROW_BYTES / 16;
    static constexpr int BYTES = ROWS * ROW_BYTES;
    static_assert(CHUNKS >= 2 && (CHUNKS & (CHUNKS - 1)) == 0, "a row is 32 bytes times a power of two");

    // What the chunk's index is XORed with. Depends on the last three bits of the row only.
    static __device__ __forceinline__ int twist(int row) {
        return CHUNKS >= 8 ? row & 7 : CHUNKS == 4 ? (row >> 1) & 3 : (row >> 2) & 1;
    }

    // Byte of a chunk.
    static __device__ __forceinline__ int at(int row, int chunk) { return row * ROW_BYTES + ((chunk ^ twist(row)) << 4); }

    // Byte of an element.
    static __device__ __forceinline__ int element(int row, int col) {
        return at(row, col / Chunk<E>::SIZE) + col % Chunk<E>::SIZE * static_cast<int>(sizeof(E));
    }
};

// Moves COUNT elements from global memory to byte `to` of shared memory, or zeros where `valid` does not hold. Four
// bytes and more go by cp.async; a single bf16, for which there is no such copy, goes through a register, and is in
// place at the next barrier like the others are behind their wait and that barrier.
template <typename E, int COUNT>
static __device__ __forceinline__ void copy_to_shared(u8 *to, const E *from, bool valid) {
    constexpr int BYTES = COUNT * static_cast<int>(sizeof(E));
    if constexpr (BYTES >= 4) {
        ptx::cp_async<BYTES>(ptx::shared_address(to), from, valid);
    } else {
        static_assert(COUNT == 1, "a single bf16");
        *reinterpret_cast<u16 *>(to) = valid ? *reinterpret_cast<const u16 *>(from) : static_cast<u16>(0);
    }
}
