// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four words for every counter, with
// no state. The words are those of `base::Philox` in Rust, bit by bit.
//
//     block i of a stream = philox4x32_10({i low, i high, stream[0], stream[1]}, key); element j is word j % 4 of block j / 4
#pragma once
#include "ptx/memory.cuh"

namespace philox {

static __device__ __forceinline__ uint4 philox4x32_10(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        const u32 high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9E3779B9u, key.y += 0xBB67AE85u;
    }
    return counter;
}

// Where a kernel finds its stream, as in Rust: `ops::device_key::KeyParams`. The words lie in a table on the device where
// they change from step to step under a captured graph, else here.
struct Key {
    const uint4 *entry; // null: `words`
    u64 pad;
    uint4 words; // key, stream
};

// A random stream: `base::Philox`.
struct Stream {
    uint2 key, stream;

    __device__ __forceinline__ explicit Stream(uint4 words)
        : key(make_uint2(words.x, words.y)), stream(make_uint2(words.z, words.w)) {}
    __device__ __forceinline__ explicit Stream(const Key &k)
        : Stream(k.entry ? ptx::load_global_16(k.entry) : k.words) {}

    __device__ __forceinline__ uint4 block(u64 index) const {
        return philox4x32_10(make_uint4(static_cast<u32>(index), static_cast<u32>(index >> 32), stream.x, stream.y), key);
    }
    // Element `index`.
    __device__ __forceinline__ u32 word(u64 index) const {
        const uint4 b = block(index >> 2);
        const u32 low = index & 1 ? b.y : b.x, high = index & 1 ? b.w : b.z;
        return index & 2 ? high : low;
    }
};

// A number in the open interval (0, 1) with 24 bits.
static __device__ __forceinline__ float unit(u32 bits) {
    return (static_cast<float>(bits >> 8) + 0.5f) * (1.0f / (1 << 24));
}

// Two standard normal numbers from two words (Box and Muller 1958). Sine and cosine of pi times an argument: the reduction is
// exact, and there is no slow path.
static __device__ __forceinline__ float2 normal_pair(u32 u, u32 v) {
    const float radius = sqrtf(-2.0f * logf(unit(u)));
    float sine, cosine;
    sincospif(2.0f * unit(v), &sine, &cosine);
    return make_float2(radius * cosine, radius * sine);
}

// The four normal numbers of a block.
static __device__ __forceinline__ float4 normals(uint4 block) {
    const float2 a = normal_pair(block.x, block.y), b = normal_pair(block.z, block.w);
    return make_float4(a.x, a.y, b.x, b.y);
}

} // namespace philox
