#!/usr/bin/env bash
# Times one distillation step of dtk and of PyTorch in turn, and prints the ratio of the medians.
#
#   tools/compare_cpu.sh [ROUNDS] [STEPS]
#   PYTHON=path/to/python THREADS=8 tools/compare_cpu.sh
#
# Both get the same number of threads and run alternately, so that other load on the machine hits both.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-3}
steps=${2:-10}
python=${PYTHON:-python3}
threads=${THREADS:-$(nproc)}
if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "$python has no PyTorch; name one that has: PYTHON=path/to/python $0" >&2
    exit 1
fi
cargo build --release --example step_time
example=${CARGO_TARGET_DIR:-target}/release/examples/step_time

dtk=() torch=()
ms() { sed -E 's/.*: ([0-9.]+) ms\/step.*/\1/'; }
for ((i = 1; i <= rounds; i++)); do
    line=$(RAYON_NUM_THREADS=$threads "$example" "$steps")
    echo "$line"
    dtk+=("$(ms <<<"$line")")
    line=$("$python" tools/bench_torch.py --steps "$steps" --threads "$threads")
    echo "$line"
    torch+=("$(ms <<<"$line")")
done
median() { printf '%s\n' "$@" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
awk -v d="$(median "${dtk[@]}")" -v t="$(median "${torch[@]}")" 'BEGIN {
    printf "median of '"$rounds"': dtk %.1f ms, PyTorch %.1f ms: PyTorch / dtk = %.2f (above 1: dtk is faster)\n", d, t, t / d
}'
