//! The name that a loader knows the library by. Programs ask for `libcuda.so` first, and whichever library of that name is
//! already loaded is the one they get.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    println!("cargo::rerun-if-changed=build.rs");
}
