#!/usr/bin/env bash
# Checks and times dtk on a machine with a GPU, in one command of at most nine minutes. The machine needs a driver and
# CUDA 13's run-time compiler; PyTorch to compare with, Nsight Compute and compute-sanitizer are used if they are there.
# It needs no Rust and no network: tools/gpu_pack.sh builds the programs beforehand, into target/gpu.
#
#   tools/gpu.sh                  everything; results to benches/results/<date>-<card>.json, the report to docs/performance.md
#   tools/gpu.sh --dry-run        the stages and their shares of the time
#   tools/gpu.sh --pack           build the programs first (tools/gpu_pack.sh)
#
#   --out DIR       where the results go (default: $OUT, else benches/results); elsewhere than in benches/results, the
#                   page with the report is put beside them
#   --bin DIR       where the programs are (default: target/gpu)
#   --budget S      seconds for everything (default 540)
#
# Every stage may use its share of the time that is left, so what one does not need goes to the others. A stage that
# exceeds its share is stopped and recorded; the rest goes on. Results are merged after every stage. Exit code 0 if no
# stage failed and none was stopped.
#
# PYTHON names the Python with PyTorch (default python3); DTK_GPU_CHECK restricts `dtk check` to operations whose name
# contains it; DTK_GPU_SANITIZE names, between blanks, parts of the names of operations to be run under compute-sanitizer; DTK_TORCH_MODE is the mode
# of torch.compile (max-autotune takes longer than there is time here; the default is "default"). With DTK_CUDA_DRIVER on the simulator nothing is timed. The card's settings are left alone.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

out=${OUT:-benches/results}
bin=target/gpu
budget=540
dry_run=false
while (($#)); do
    case $1 in
    --out | --bin | --budget)
        if (($# < 2)); then
            echo "$1 needs a value" >&2
            exit 2
        fi
        case $1 in
        --out) out=$2 ;;
        --bin) bin=$2 ;;
        --budget) budget=$2 ;;
        esac
        shift 2
        ;;
    --dry-run)
        dry_run=true
        shift
        ;;
    --pack)
        tools/gpu_pack.sh || exit 1
        shift
        ;;
    *)
        echo "unknown argument $1; the head of $0 says what there is" >&2
        exit 2
        ;;
    esac
done
if ! [[ $budget =~ ^[1-9][0-9]*$ ]]; then
    echo "--budget: $budget is no number of seconds" >&2
    exit 2
fi

python=${PYTHON:-python3}
mode=${DTK_TORCH_MODE:-default}
dtk=$bin/dtk
# Seconds kept back for merging, the report and the end of a stopped stage.
reserve=$((budget / 20 + 2))

# name, share of the time
plan=(
    info 8
    check 40
    tests 35
    training 40
    step_dtk_1 40
    step_torch_1 140
    step_torch_2 60
    step_dtk_2 30
    conv_dtk_1 22
    conv_torch_1 22
    conv_torch_2 15
    conv_dtk_2 15
    ops 25
    profile_step 35
    profile 15
    memcheck 25
    racecheck 25
)

# Seconds a stage may take: its share, out of all stages still to come, of the time that is left.
limit() {
    local i weight=0 rest=0 left=$((budget - reserve - SECONDS)) seen=false
    for ((i = 0; i < ${#plan[@]}; i += 2)); do
        if [[ ${plan[i]} == "$1" ]]; then
            weight=${plan[i + 1]}
            seen=true
        fi
        $seen && rest=$((rest + plan[i + 1]))
    done
    local s=$((rest > 0 && left > 0 ? left * weight / rest : 0))
    echo $((s > 3 ? s : 3))
}

if $dry_run; then
    left=$((budget - reserve)) rest=0
    for ((i = 0; i < ${#plan[@]}; i += 2)); do rest=$((rest + plan[i + 1])); done
    for ((i = 0; i < ${#plan[@]}; i += 2)); do
        printf '%4d s  %s\n' $((left * plan[i + 1] / rest)) "${plan[i]}"
    done
    printf '%4d s  %s\n' "$reserve" "merging, the report"
    exit 0
fi

if [[ ! -x $dtk ]]; then
    echo "there is no $dtk; build it with tools/gpu_pack.sh where Rust is, and bring the folder along" >&2
    exit 1
fi
mkdir -p "$out" || exit 1
work=$(mktemp -d)
sampler=
# shellcheck disable=SC2329 # called by the trap
cleanup() {
    [[ -n $sampler ]] && kill "$sampler" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT

if [[ -f $bin/MANIFEST ]]; then
    DTK_COMMIT=$(sed -n 's/^commit //p' "$bin/MANIFEST")
    export DTK_COMMIT
    if ! (cd "$bin" && sed '1,/^$/d' MANIFEST | sha256sum --check --quiet); then
        echo "$bin is not what its MANIFEST says: pack it again" >&2
        exit 1
    fi
fi
DTK_GOLDEN=${DTK_GOLDEN:-$PWD/tests/golden}
export DTK_GOLDEN PYTHONUNBUFFERED=1

simulated=false
[[ -n ${DTK_CUDA_DRIVER:-} ]] && simulated=true
card=
if ! $simulated && command -v nvidia-smi >/dev/null; then
    card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
    nvidia-smi --query-gpu=driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv,noheader \
        --loop-ms=500 >"$work/clocks.csv" 2>/dev/null &
    sampler=$!
fi
$simulated && card=simulated
slug=$(tr -cs '[:alnum:]\n' '-' <<<"${card:-no card}" | tr '[:upper:]' '[:lower:]' | sed 's/-*$//')
results=$out/$(date -u +%F)-$slug.json
log=$out/$(date -u +%F)-$slug.log
: >"$log"

stages=()
failed=0

# Writes the stages as a part and merges all parts there are.
merge() {
    local IFS=,
    printf '{"format": "dtk-bench", "version": 1, "stages": [%s]}\n' "${stages[*]}" >"$work/part_0_stages.json"
    if ! "$dtk" bench --merge "$work"/part_*.json --json "$results" >>"$log" 2>&1; then
        echo "the parts do not merge; see $log" >&2
        failed=1
    fi
}

record() { # name, outcome, seconds, note (without quotes and backslashes)
    stages+=("$(printf '{"name": "%s", "outcome": "%s", "seconds": %d, "note": "%s"}' "$@")")
    printf '%-14s %-8s %4d s  %s\n' "$@"
    if [[ $2 == failed || $2 == timeout ]]; then
        failed=1
    fi
    merge
}

# Runs a stage within its limit, its output to the log.
stage() { # name, command...
    local name=$1 start=$SECONDS cap rc
    shift
    cap=$(limit "$name")
    printf '\n=== %s (at most %d s): %s\n' "$name" "$cap" "$*" >>"$log"
    timeout --kill-after=3 "$cap" "$@" >>"$log" 2>&1
    rc=$?
    case $rc in
    0) record "$name" passed $((SECONDS - start)) "" ;;
    124 | 137) record "$name" timeout $((SECONDS - start)) "stopped after $cap s" ;;
    *) record "$name" failed $((SECONDS - start)) "exit code $rc" ;;
    esac
    return "$rc"
}

skip() { record "$1" skipped 0 "$2"; }

# Timing, or on the simulator the list of what would be timed.
bench() { # name, part, arguments...
    local name=$1 part=$work/$2
    shift 2
    if $simulated; then
        stage "$name" "$dtk" bench "$@" --device cuda --list --json "$part"
    else
        stage "$name" "$dtk" bench "$@" --device cuda --json "$part"
    fi
}

# Timing where it was done before: the other half of a comparison in turn.
again() { # name, part, arguments...
    if $simulated; then
        skip "$1" "a simulated card has no speed"
    else
        bench "$@"
    fi
}

torch() { # name, part, script, arguments...
    local name=$1 part=$work/$2 script=$3
    shift 3
    if $simulated; then
        skip "$name" "a simulated card has no speed"
    elif ! "$python" -c 'import torch' 2>>"$log"; then
        skip "$name" "no PyTorch in $python"
    elif [[ $script == *conv* && ! -f $work/part_1.json ]]; then
        skip "$name" "dtk named no shapes"
    else
        stage "$name" "$python" "$script" "$@" --out "$part" --budget "$(($(limit "$name") - 5))"
    fi
}

# Test programs whose name begins with one of the words in $training, or all others.
# shellcheck disable=SC2329 # called by `bash -c`
tests() { # yes or no
    local exe rc=0 mine
    for exe in "$bin"/tests/*; do
        mine=no
        [[ ${exe##*/} =~ ^($training) ]] && mine=yes
        [[ $mine == "$1" ]] || continue
        printf '\n--- %s\n' "$exe"
        DTK_TEST_DEVICE=cuda "$exe" || rc=1
    done
    return "$rc"
}

# Operations under a tool of compute-sanitizer, by parts of their names.
# shellcheck disable=SC2329 # called by `bash -c`
sanitize() { # tool
    local name rc=0
    for name in ${DTK_GPU_SANITIZE:-feature_loss attention norm lamb encode_images accumulate pool resize running_average concat embedding drop conv2d}; do
        printf '\n--- %s\n' "$name"
        compute-sanitizer --tool "$1" --error-exitcode 9 "$dtk" check "$name" --device cuda || rc=1
    done
    return "$rc"
}

sanitizer() { # tool
    if $simulated; then
        skip "$1" "the simulator has checks of its own"
    elif ! command -v compute-sanitizer >/dev/null; then
        skip "$1" "compute-sanitizer is not installed"
    else
        stage "$1" bash -c "sanitize $1"
    fi
}

# Nsight Compute on one launch of each of the three slowest convolutions. Clocks are left as they are.
# shellcheck disable=SC2329 # called by `bash -c`
profiles() {
    local label i=0 rc=0
    while read -r label; do
        i=$((i + 1))
        printf '\n--- %s\n' "$label"
        ncu --csv --page details --clock-control none --launch-skip 2 --launch-count 1 --kernel-name regex:conv2d \
            --section SpeedOfLight --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis \
            --section LaunchStats --section Occupancy \
            "$dtk" bench conv "$label" --device cuda --batch 8,64 --seconds 0 >"$work/ncu.csv" || rc=1
        cat "$work/ncu.csv"
        "$python" tools/gpu_parts.py profile "$work/ncu.csv" "$label" "$work/part_5_$i.json" || rc=1
    done < <("$python" tools/gpu_parts.py slowest "$results")
    ((i > 0)) && return "$rc"
    echo "no convolution was timed"
    return 1
}

# Nsight Compute on every kernel of one whole step, the second: which take the most time, and how busy the memory is then.
# shellcheck disable=SC2329 # called by `bash -c`
profile_step() {
    local launches label="whole step"
    launches=$("$python" tools/gpu_parts.py launches "$results" "$label") || return 1
    ncu --csv --page details --print-units base --clock-control none --kill yes \
        --launch-skip "$launches" --launch-count "$launches" \
        --metrics gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,sm__warps_active.avg.pct_of_peak_sustained_active \
        "$dtk" bench step "$label" --device cuda --batch 64 --seconds 0 >"$work/ncu_step.csv"
    # Ncu ends the program it has seen enough of, so only the table tells how it went.
    "$python" tools/gpu_parts.py kernels "$work/ncu_step.csv" "imagenet, 64 images: $label" "$work/part_5_step.json"
}

profile() { # name, function
    if $simulated; then
        skip "$1" "a simulated card has no speed"
    elif ! command -v ncu >/dev/null; then
        skip "$1" "ncu is not installed"
    else
        stage "$1" bash -c "$2"
    fi
}

training='gpu_training|gpu_teacher|gpu_embedding|golden_|adm_'
export -f tests profiles profile_step sanitize
export bin dtk python work results training

stage info "$dtk" info
if [[ -n ${DTK_GPU_CHECK:-} ]]; then
    stage check "$dtk" check "$DTK_GPU_CHECK" --device cuda
else
    stage check "$dtk" check --device cuda
fi
if compgen -G "$bin/tests/*" >/dev/null; then
    stage tests bash -c 'tests no'
    stage training bash -c 'tests yes'
else
    skip tests "no test programs in $bin/tests"
    skip training "no test programs in $bin/tests"
fi
# dtk, PyTorch, PyTorch, dtk: a drift of clock or temperature hits both alike. What PyTorch compiles for the first turn lies
# in its cache for the second.
bench step_dtk_1 part_8.json step --batch 64
torch step_torch_1 part_9_1.json tools/torch_step.py --batch 64 --mode "$mode"
torch step_torch_2 part_9_2.json tools/torch_step.py --batch 64 --mode "$mode" --variants compiled
again step_dtk_2 part_8_2.json step --batch 64
bench conv_dtk_1 part_1.json conv --batch 8,64
torch conv_torch_1 part_2.json tools/torch_conv.py --shapes "$work/part_1.json"
torch conv_torch_2 part_3.json tools/torch_conv.py --shapes "$work/part_1.json"
again conv_dtk_2 part_4.json conv --batch 8,64
bench ops part_6.json ops
profile profile_step profile_step
profile profile profiles
sanitizer memcheck
sanitizer racecheck

if [[ -n $sampler ]]; then
    kill "$sampler" 2>/dev/null
    sampler=
    "$python" tools/gpu_parts.py clocks "$work/clocks.csv" "$work/part_7.json" 2>>"$log" || rm -f "$work/part_7.json"
fi
merge
if ! $simulated; then
    page=docs/performance.md
    if [[ $(realpath "$out") != "$(realpath -m benches/results)" ]]; then
        cp "$page" "$out/performance.md"
        page=$out/performance.md
    fi
    "$dtk" bench --report --results "$out" --page "$page" || failed=1
fi
echo "results in $results, log in $log, after $SECONDS s"
exit $failed
