//! Instructions by which the lanes of a warp exchange values: shuffles, votes, matches, reductions.
//!
//! Each names in a member mask the lanes that take part. All of them that live must execute the instruction together; the
//! others are told as `AbsentLane`, and the result is made of those that are there. Lanes that exited, and those that a
//! block whose size is no multiple of 32 never had, may be named: hardware does not wait for them either.

pub(crate) mod elect;
pub(crate) mod members;
pub(crate) mod redux;
pub(crate) mod shuffle;
pub(crate) mod vote;
