#!/bin/sh
# Builds the simulator's driver library, then the program beside this script against it, and runs the program. `cust` is
# linked with -lcuda, so a libcuda.so must be there when it is built, and a libcuda.so.1 when it is run. NVRTC is the one that
# tools/ptxsim/setup.sh has brought.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"
cargo build --release -p ptxsim-driver
target=${CARGO_TARGET_DIR:-$root/target}
library=$target/release/libptxsim_driver.so

cuda=$(mktemp -d)
trap 'rm -rf "$cuda"' EXIT
mkdir "$cuda/lib64"
ln -s "$library" "$cuda/lib64/libcuda.so"
ln -s "$library" "$cuda/lib64/libcuda.so.1"

cd "$here"
# The build script of cust's bindings looks for the library in $CUDA_LIBRARY_PATH/lib64.
CUDA_LIBRARY_PATH="$cuda" cargo build --release --target-dir "${CARGO_TARGET_DIR:-$here/target}"
LD_LIBRARY_PATH="$cuda/lib64" DTK_CACHE_DIR="$target/tmp/kernel_cache" \
    "${CARGO_TARGET_DIR:-$here/target}/release/dtk-on-cust" | tee "$cuda/out"
grep -q ptxsim "$cuda/out" && grep -qx OK "$cuda/out"
