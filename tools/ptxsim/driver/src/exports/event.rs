//! Events.

use super::entries;
use crate::event;
use crate::ffi::{Handle, Out};
use std::ffi::c_uint;

entries! {
    cuEventCreate(out: Out<Handle>, flags: c_uint) => event::create(out, flags);
    cuEventDestroy_v2(event: Handle) => event::destroy(event);
    cuEventRecord(event: Handle, stream: Handle) => event::record(event, stream);
    cuEventRecordWithFlags(event: Handle, stream: Handle, flags: c_uint) =>
        event::record_with_flags(event, stream, flags);
    cuEventQuery(event: Handle) => event::query(event);
    cuEventSynchronize(event: Handle) => event::synchronize(event);
    cuEventElapsedTime(out: Out<f32>, start: Handle, end: Handle) => event::elapsed(out, start, end);
    cuEventElapsedTime_v2(out: Out<f32>, start: Handle, end: Handle) => event::elapsed(out, start, end);
}
