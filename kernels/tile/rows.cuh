// Rows of channels under something that belongs to the channels: a thread keeps what belongs to its chunk of channels and
// goes down the rows.
//
//     x [segments, rows, columns]     segment: the rows of one sample, or all rows
//
//     block -> LANES chunks of columns x SLOTS rows of one part of a segment     columns ->
//     thread (slot, lane) -> rows slot, slot + SLOTS, ..                   rows |  slot 0: lane 0 | lane 1 | ..
//                                                                               v  slot 1: ..
#pragma once
#include "tile/elementwise.cuh"

// As in Rust: `ops::elementwise::rows::Layout`.
struct RowLayout {
    i64 rows;          // of a segment
    i64 length;        // rows of a part
    int columns;
    int lanes, slots;  // threads of a block
    int across, parts; // blocks of a row, parts of a segment
    int pad;
};

// As in Rust: `ops::elementwise::rows::RowMapParams`.
struct RowMapParams {
    u64 in, row, out; // row [segments, columns]
    RowLayout at;
};

namespace rows {

// The part of the rows that a thread goes through.
struct Share {
    i64 segment, begin, end; // rows of the segment: begin, begin + slots, .. below end
    int column;
    bool exists;

    __device__ __forceinline__ Share(const RowLayout &l, int each) {
        const int lane = threadIdx.x % l.lanes, slot = threadIdx.x / l.lanes;
        const u32 across = blockIdx.x % l.across, rest = blockIdx.x / l.across, part = rest % l.parts;
        segment = rest / l.parts;
        column = (across * l.lanes + lane) * each;
        begin = part * l.length + slot;
        end = min((part + 1) * l.length, l.rows);
        exists = slot < l.slots && column < l.columns;
    }
};

// out[row] = apply(in[row], own), where `own` is what `prepare` makes for a thread's segment and columns.
template <bool WIDE, typename Prepare, typename Apply>
static __device__ __forceinline__ void map(const T *in, T *out, const RowLayout &l, Prepare prepare, Apply apply) {
    constexpr int EACH = elementwise::EACH<T, WIDE>, TURNS = 4;
    const Share share(l, EACH);
    if (!share.exists) return;
    float own[EACH];
    prepare(own, share.segment, share.column);
    const i64 base = share.segment * l.rows * l.columns + share.column;
    for (i64 row = share.begin; row < share.end; row += TURNS * l.slots) {
        elementwise::Raw<T, WIDE> raw[TURNS];
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn)
            if (row + turn * l.slots < share.end)
                raw[turn] = elementwise::read<WIDE>(in + base + (row + turn * l.slots) * l.columns);
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            if (row + turn * l.slots >= share.end) break;
            float v[EACH];
            elementwise::widen(v, raw[turn]);
            apply(v, own);
            elementwise::store(out + base + (row + turn * l.slots) * l.columns, v);
        }
    }
}

} // namespace rows
