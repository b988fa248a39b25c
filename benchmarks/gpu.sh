#!/usr/bin/env bash
# Build, prove and time the GPU side on a bare machine without network.
#
#   benchmarks/gpu.sh                 all families
#   benchmarks/gpu.sh prune longtail  these; a family whose results are there is not run again
#
# -P keeps the source tree, which has no compiled kernels, out of the import path. A run takes at most 9 minutes
# (${MINUTES:-9}): a family for which too few are left waits for the next run, which begins where this one ended.
# Needs CUDA, and in Python: torch, triton, pybind11, scikit-build-core, cmake, ninja, pytest, hypothesis,
# pytest-benchmark; peers are raced where they are installed, or lie as wheels in $WHEELS.
# Leaves ${OUT:-benchmarks/results}/<gpu>/<family>.json, <family>.log and <family>.sanitizer.log.
set -uo pipefail
seconds=$((${MINUTES:-9} * 60))

# Runs a command for at most so many seconds, or those that are left.
within() {
    local most=$1 left=$((seconds - SECONDS))
    shift
    timeout $((left < 1 ? 1 : left < most ? left : most)) "$@"
}

cd "$(dirname "$0")/.." || exit 1

out=${OUT:-benchmarks/results}
python=${PYTHON:-python3}
mapfile -t known < <(find benchmarks -maxdepth 1 -name 'bench_*.py' -printf '%f\n' | sed 's/^bench_//; s/\.py$//' | sort)
families=("$@")
[ ${#families[@]} -gt 0 ] || families=("${known[@]}")
for family in "${families[@]}"; do
    [ -f "benchmarks/bench_$family.py" ] || { echo "family must be one of ${known[*]}, got $family" >&2; exit 2; }
done

gpu=$("$python" -c 'import re, torch; print(re.sub(r"\W+", "_", torch.cuda.get_device_name()).lower())') || {
    echo "no CUDA device that torch sees" >&2
    exit 1
}
mkdir -p "$out/$gpu"
"$python" -m pip install --quiet --no-build-isolation --no-deps --no-index . || exit 1
[ -z "${WHEELS:-}" ] || "$python" -m pip install --quiet --no-deps --no-index "$WHEELS"/*.whl || exit 1

failed=() waiting=() slowest=0
for family in "${families[@]}"; do
    results=$out/$gpu/$family
    if [ -s "$results.json" ]; then
        echo "== $family: done before, $results.json"
        continue
    fi
    if [ $((seconds - SECONDS)) -lt "$slowest" ]; then
        waiting+=("$family")
        continue
    fi
    began=$SECONDS
    echo "== $family: tests"
    within 150 "$python" -P -m pytest tests/interpreted --device cuda -q -p no:cacheprovider \
        -k "$family" >"$results.log" 2>&1
    status=$?
    tail -n 3 "$results.log"
    [ $status -eq 0 ] || failed+=("$family tests")

    if command -v compute-sanitizer >/dev/null; then
        echo "== $family: compute-sanitizer on every race's smallest inputs"
        within 120 compute-sanitizer --tool memcheck --error-exitcode 9 --target-processes all \
            "$python" -P -m pytest benchmarks -q -p no:cacheprovider --benchmark-disable \
            -k "$family and cuda and pyfast" >"$results.sanitizer.log" 2>&1
        status=$?
        tail -n 2 "$results.sanitizer.log"
        [ $status -eq 0 ] || failed+=("$family sanitizer")
    else
        echo "== $family: no compute-sanitizer here, left out"
    fi

    echo "== $family: races"
    # Under another name until it is whole, so that a run that was cut off is made again.
    within 240 "$python" -P -m pytest benchmarks -q -p no:cacheprovider -k "$family and cuda" --seconds 0.3 \
        --benchmark-columns=min,median,rounds --benchmark-json="$results.partial" >>"$results.log" 2>&1
    status=$?
    tail -n 3 "$results.log"
    if [ $status -eq 0 ]; then
        mv "$results.partial" "$results.json"
    else
        failed+=("$family races")
    fi
    slowest=$((SECONDS - began > slowest ? SECONDS - began : slowest))
done

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
if [ ${#waiting[@]} -gt 0 ]; then
    echo "passed so far: $out/$gpu; run again for ${waiting[*]}"
    exit 75 # as sysexits.h: try again
fi
echo "all passed: $out/$gpu"
