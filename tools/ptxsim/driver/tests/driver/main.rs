//! The driver's interface, called as a C program calls it, through the declarations of the crate `cudarc`. The library is
//! loaded from cargo's output folder before the first call.

mod capture;
mod cards;
mod contexts;
mod faults;
mod graphs;
mod launches;
mod memory;
mod modules;
mod occupancy;
mod order;
mod streams;
mod support;
mod symbols;
mod tensormaps;
