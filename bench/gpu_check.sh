#!/usr/bin/env bash
# All that is checked on a GPU, in stages of at most 8 minutes, the most important first:
#
#     bench/gpu_check.sh [--again] [STAGE...]     (all stages without an argument)
#     bench/gpu_check.sh --list
#
# A stage writes $OUT/STAGE.log as it goes (OUT: bench/gpu), and when it has ended a line to
# $OUT/summary.txt; one that has passed there is not run again unless --again is given or the line
# removed. The benchmarks also write every row to $OUT/rows.jsonl and go on where they were stopped.
# Nothing is installed: Python is $PYTHON (python3), with the packages that it has.
#
# Exit status: 0 all passed, 1 a stage failed, 2 no such machine or wrong arguments.

# shellcheck disable=SC2317 # stages are called by their names

set -uo pipefail
OUT=$(realpath -m "${OUT:-$(dirname "${BASH_SOURCE[0]}")/gpu}")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

PYTHON=${PYTHON:-python3}
SKIPPED=77 # status of a stage that cannot be done here
LIMIT=480 # seconds a stage
export PYTHON OUT PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

declare -A STAGES=(
    [primitives]="each primitive of the kernels, on the hardware and on the emulator, bit by bit"
    [kernels]="all kernels compiled for the card; the tests of operations and kernels on it"
    [training]="a training run on the embedded data set beside the CPU's: float32, tf32, float16"
    [networks]="benchmarks of whole networks beside PyTorch"
    [rows]="all other benchmarks"
    [sanitizer]="compute-sanitizer over the kernel tests, where it is installed"
)
ORDER=(primitives kernels training networks rows sanitizer)

# What the emulator would run, the GPU runs. Orders of threads are the emulator's affair: one is
# enough.
ON_GPU=(-m pytest -p no:cacheprovider -p tests.cuda_on_cpu.on_gpu -k "not reverse and not shuffled"
    tests/tensorlite/kernels/cuda --ignore tests/tensorlite/kernels/cuda/test_compiler.py)

stage_primitives() {
    "$PYTHON" -m pytest -p no:cacheprovider tests/cuda_on_cpu/test_on_device.py
}

stage_kernels() {
    local failed=0 arch
    arch=$("$PYTHON" -c 'import cupy; print(cupy.cuda.Device(0).compute_capability)') || return
    "$PYTHON" -m tensorlite.kernels.cuda --arch "$arch" || failed=1
    "$PYTHON" -m pytest -p no:cacheprovider tests/tensorlite tests/recres -k "cuda:0" || failed=1
    "$PYTHON" "${ON_GPU[@]}" || failed=1
    return "$failed"
}

stage_training() {
    local failed=0 precision
    folder=$(mktemp -d) || return
    trap 'rm -rf "$folder"' EXIT
    train() { "$PYTHON" -m recres.train --seed 0 --epochs 1 --data-root "$folder/data" "$@"; }
    train --device cpu --out "$folder/cpu" || return
    for precision in float32 tf32 float16; do
        train --device cuda --precision "$precision" --out "$folder/$precision" || failed=1
        "$PYTHON" -m bench.losses "$folder/cpu" "$folder/$precision" --precision "$precision" ||
            failed=1
    done
    return "$failed"
}

# Rows that failed before are measured again. Status 3: an error ended the work with the card, and
# another process can do the rows that are left.
bench() {
    local file=$OUT/rows.jsonl status=0
    if [[ -f $file ]]; then
        grep -v '"failed":' "$file" >"$file.kept"
        mv "$file.kept" "$file"
    fi
    for _ in 1 2 3 4 5; do
        "$PYTHON" -m bench.cuda --results "$file" "$@"
        status=$?
        ((status == 3)) || break
    done
    return "$status"
}

stage_networks() { bench --only resnet --only rrn; }

stage_rows() { bench; }

stage_sanitizer() {
    if ! command -v compute-sanitizer; then
        echo "compute-sanitizer is not installed: nothing checked"
        return "$SKIPPED"
    fi
    compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" "${ON_GPU[@]}"
}

usage_error() {
    echo "error: $1" >&2
    exit 2
}

again=""
chosen=()
for argument in "$@"; do
    case $argument in
        --list)
            for stage in "${ORDER[@]}"; do printf '%-12s%s\n' "$stage" "${STAGES[$stage]}"; done
            exit 0
            ;;
        --again) again=yes ;;
        --stage=*) # for this script's own use: a stage in a process that can be stopped
            "stage_${argument#--stage=}"
            exit
            ;;
        *)
            [[ -v STAGES[$argument] ]] || usage_error "$argument: no such stage; see --list"
            chosen+=("$argument")
            ;;
    esac
done
((${#chosen[@]})) || chosen=("${ORDER[@]}")

"$PYTHON" - <<'EOF' || exit 2
import importlib.util
import sys

needed = ("numpy scipy cv2 safetensors threadpoolctl tqdm cupy torch pytest hypothesis").split()
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}")
from tensorlite.device import require_cuda

try:
    require_cuda("cuda:0")
except RuntimeError as reason:
    sys.exit(f"error: {reason}")
EOF

mkdir -p "$OUT" && touch "$OUT/summary.txt" || exit 2
failed=0
for stage in "${chosen[@]}"; do
    if [[ -z $again ]] && grep -q "^$stage *passed" "$OUT/summary.txt"; then
        echo "== $stage: passed before"
        continue
    fi
    echo "== $stage: ${STAGES[$stage]}"
    sed -i "/^$stage /d" "$OUT/summary.txt"
    [[ -z $again || $stage != networks ]] || rm -f "$OUT/rows.jsonl"
    began=$SECONDS
    timeout --kill-after=15 "$LIMIT" bash bench/gpu_check.sh "--stage=$stage" 2>&1 |
        tee "$OUT/$stage.log"
    case ${PIPESTATUS[0]} in
        0) result=passed ;;
        "$SKIPPED") result=skipped ;;
        124 | 137) result="failed: stopped after $LIMIT s; another call goes on" failed=1 ;;
        *) result=failed failed=1 ;;
    esac
    printf '%-12s%-8s%5d s  %s\n' "$stage" "${result%%:*}" $((SECONDS - began)) \
        "${result#"${result%%:*}"}" >>"$OUT/summary.txt"
done
echo "== summary, logs in $OUT"
cat "$OUT/summary.txt"
exit "$failed"
