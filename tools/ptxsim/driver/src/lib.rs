//! ptxsim as a CUDA driver library: a program that is linked against or loads `libcuda` finds the simulator instead of a
//! card. How to use it is in the README of `tools/ptxsim`.
//!
//! [`exports`] has the C symbols, `ffi` what crosses the boundary; everything behind is a module for each family of the
//! driver's interface. The functions of these modules bear the names of their symbols in their comments; the behaviour is
//! the one that NVIDIA documents, so the comments say only what is particular here.

// The functions have as many arguments as their counterparts in the driver's interface.
#![allow(clippy::too_many_arguments)]

mod capture;
mod context;
mod copy;
mod device;
mod error;
mod event;
pub mod exports;
mod ffi;
mod function;
mod graph;
mod graph_exec;
mod graph_nodes;
mod handles;
mod image;
mod jit;
mod launch;
mod memory;
mod module;
mod occupancy;
mod op;
mod order;
mod pool;
mod procaddress;
mod report;
mod state;
mod stream;
mod tensormap;
