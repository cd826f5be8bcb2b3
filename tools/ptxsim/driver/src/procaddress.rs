//! `cuGetProcAddress`: symbols by name and CUDA version.

use crate::device::VERSION;
use crate::error::{Error, Result};
use crate::exports;
use crate::ffi::{Out, Text};

/// `CU_GET_PROC_ADDRESS_…` results.
const FOUND: u32 = 0;
const NO_SYMBOL: u32 = 1;
const TOO_OLD: u32 = 2;

/// Names whose function changed: from which version of CUDA on which symbol is meant. Other names with a symbol that
/// ends in `_v2` (or `_v3`) mean that, since the first form is from before CUDA 4.
const CHANGED: &[(&str, &[(i32, &str)])] = &[
    ("cuCtxCreate", &[(3020, "cuCtxCreate_v2"), (11040, "cuCtxCreate_v3"), (12050, "cuCtxCreate_v4")]),
    ("cuCtxGetDevice", &[(2000, "cuCtxGetDevice"), (13000, "cuCtxGetDevice_v2")]),
    ("cuCtxSynchronize", &[(2000, "cuCtxSynchronize"), (13000, "cuCtxSynchronize_v2")]),
    ("cuDeviceGetUuid", &[(9020, "cuDeviceGetUuid"), (11040, "cuDeviceGetUuid_v2")]),
    ("cuEventElapsedTime", &[(2000, "cuEventElapsedTime"), (12080, "cuEventElapsedTime_v2")]),
    ("cuGetProcAddress", &[(11030, "cuGetProcAddress"), (12000, "cuGetProcAddress_v2")]),
    ("cuGraphAddDependencies", &[(10000, "cuGraphAddDependencies"), (12030, "cuGraphAddDependencies_v2")]),
    ("cuGraphAddKernelNode", &[(10000, "cuGraphAddKernelNode"), (12000, "cuGraphAddKernelNode_v2")]),
    ("cuGraphAddNode", &[(12020, "cuGraphAddNode"), (12030, "cuGraphAddNode_v2")]),
    (
        "cuGraphExecKernelNodeSetParams",
        &[(10010, "cuGraphExecKernelNodeSetParams"), (12000, "cuGraphExecKernelNodeSetParams_v2")],
    ),
    ("cuGraphExecUpdate", &[(10020, "cuGraphExecUpdate"), (12000, "cuGraphExecUpdate_v2")]),
    ("cuGraphGetEdges", &[(10000, "cuGraphGetEdges"), (12030, "cuGraphGetEdges_v2")]),
    ("cuGraphInstantiate", &[(11000, "cuGraphInstantiate_v2"), (12000, "cuGraphInstantiateWithFlags")]),
    (
        "cuGraphKernelNodeGetParams",
        &[(10000, "cuGraphKernelNodeGetParams"), (12000, "cuGraphKernelNodeGetParams_v2")],
    ),
    (
        "cuGraphKernelNodeSetParams",
        &[(10000, "cuGraphKernelNodeSetParams"), (12000, "cuGraphKernelNodeSetParams_v2")],
    ),
    (
        "cuGraphNodeGetDependencies",
        &[(10000, "cuGraphNodeGetDependencies"), (12030, "cuGraphNodeGetDependencies_v2")],
    ),
    (
        "cuGraphNodeGetDependentNodes",
        &[(10000, "cuGraphNodeGetDependentNodes"), (12030, "cuGraphNodeGetDependentNodes_v2")],
    ),
    (
        "cuGraphRemoveDependencies",
        &[(10000, "cuGraphRemoveDependencies"), (12030, "cuGraphRemoveDependencies_v2")],
    ),
    ("cuMemAdvise", &[(8000, "cuMemAdvise"), (12020, "cuMemAdvise_v2")]),
    ("cuMemPrefetchAsync", &[(8000, "cuMemPrefetchAsync"), (12020, "cuMemPrefetchAsync_v2")]),
    (
        "cuStreamGetCaptureInfo",
        &[
            (10010, "cuStreamGetCaptureInfo"),
            (11030, "cuStreamGetCaptureInfo_v2"),
            (12030, "cuStreamGetCaptureInfo_v3"),
        ],
    ),
    ("cuStreamGetCtx", &[(9020, "cuStreamGetCtx"), (12050, "cuStreamGetCtx_v2")]),
    (
        "cuStreamUpdateCaptureDependencies",
        &[(11030, "cuStreamUpdateCaptureDependencies"), (12030, "cuStreamUpdateCaptureDependencies_v2")],
    ),
];

/// The symbol that a name means for a version of CUDA, or why there is none.
fn symbol(name: &str, version: i32) -> std::result::Result<String, u32> {
    if let Some((_, forms)) = CHANGED.iter().find(|c| c.0 == name) {
        let form = forms.iter().rev().find(|f| f.0 <= version);
        return form.map(|f| f.1.to_string()).ok_or(TOO_OLD);
    }
    let latest = ["_v3", "_v2", ""].map(|suffix| format!("{name}{suffix}"));
    latest.into_iter().find(|s| exports::address(s).is_some()).ok_or(NO_SYMBOL)
}

/// `cuGetProcAddress` and `_v2`.
pub fn get(name: Text, out: Out<usize>, version: i32, flags: u64, status: Out<u32>) -> Result {
    out.needed()?;
    let name = name.get()?;
    if version > VERSION || flags > 2 {
        return Err(Error::INVALID_VALUE);
    }
    let found = symbol(&name, version).and_then(|s| exports::address(&s).ok_or(NO_SYMBOL));
    match found {
        Ok(address) => {
            status.set_if(FOUND);
            out.set(address.0 as usize)
        }
        Err(why) => {
            let silent = status.is_null();
            status.set_if(why);
            out.set(0)?;
            // Without a place for the status, the first form of the function tells by its result.
            if silent { Err(Error::NOT_FOUND) } else { Ok(()) }
        }
    }
}
