#!/usr/bin/env bash
# Builds what tools/gpu.sh needs into target/gpu, for machines without Rust: the program, the test programs that use a GPU,
# and a MANIFEST of commit, version and checksums. For x86-64-v3 (.cargo/config.toml), stripped, at most 60 MiB.
#
#   tools/gpu_pack.sh [FOLDER]
#
# The folder then travels with the working tree: tools/gpu.sh also needs tools, docs, kernels and tests/golden.
set -euo pipefail
cd "$(dirname "$0")/.."

to=${1:-target/gpu}
most=$((60 << 20))
commit=$(git rev-parse --short=12 HEAD)
if [[ -n $(git status --porcelain --untracked-files=no) ]]; then
    commit+=-dirty
fi

# Test programs that take a GPU name the harness for it: files of tests, and folders with a main.rs. Those that start
# the program cargo built find it only where they were built.
tests=()
while read -r file; do
    name=${file#tests/}
    tests+=(--test "${name%%[/.]*}")
done < <(grep -lE 'common/gpu\.rs' tests/*.rs tests/*/main.rs | xargs --no-run-if-empty grep -L CARGO_BIN_EXE)

rm -rf "$to"
mkdir -p "$to/tests"
cargo build --release --bin dtk
cp "${CARGO_TARGET_DIR:-target}/release/dtk" "$to/dtk"
if ((${#tests[@]})); then
    # One line of JSON per artifact; test programs are those with an executable and the profile of a test.
    cargo test --release --no-run --message-format=json "${tests[@]}" |
        sed -n '/"reason":"compiler-artifact"/{/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p}' |
        while read -r exe; do
            name=$(basename "$exe")
            cp "$exe" "$to/tests/${name%-*}"
        done
fi
find "$to" -type f -exec strip --strip-all {} +

{
    echo "commit $commit"
    echo "version $("$to/dtk" --version)"
    echo "target x86_64, $(sed -n 's/.*"target-cpu=\([^"]*\)".*/\1/p' .cargo/config.toml)"
    echo
    (cd "$to" && find . -type f ! -name MANIFEST -print0 | sort -z | xargs -0 sha256sum)
} >"$to/MANIFEST"

size=$(du --summarize --bytes "$to" | cut -f1)
echo "$to: $((size >> 20)) MiB in $(find "$to" -type f | wc -l) files, commit $commit"
if ((size > most)); then
    echo "that is more than $((most >> 20)) MiB: too much to carry" >&2
    exit 1
fi
