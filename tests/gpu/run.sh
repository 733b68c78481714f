#!/usr/bin/env bash
# Checks the CUDA backend on a machine with an NVIDIA GPU: run.sh [--concurrent] [PART...]
#
# Parts: probe, graph, xla, optimizers, offload, sanitizer, streams, parity, allocations, timing,
# model, peers, budget, finetune, offload_timing; none named: all. The probe always comes first, and nothing else
# runs where it fails. xla needs JAX with CUDA, all others but the probe PyTorch with CUDA.
#
# --concurrent: the parts before allocations at the same time, each with its output in OUT/PART.log, which
# is printed when the part has ended. The others, which measure memory and times of the whole device, still
# run one after the other, behind them.
#
# Environment:
#   OUT               folder for the results (default: ./results)
#   PYTHON            interpreter (default: python3)
#   LOWBIT_SEED       seed of the random numbers (default: a fresh one, which is printed)
#   LOWBIT_LIBRARY    library to check (default: the bundle's)
#   LOWBIT_SANITIZER  compute-sanitizer (default: the machine's, else the bundle's)
set -u -o pipefail

checking=(graph xla optimizers offload sanitizer streams parity)
measuring=(allocations timing model peers budget finetune offload_timing)
all=(probe "${checking[@]}" "${measuring[@]}")
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
python=${PYTHON:-python3}
out=${OUT:-results}

concurrent=
if [ "${1:-}" = --concurrent ]; then
  concurrent=yes
  shift
fi
parts=("$@")
[ $# -gt 0 ] || parts=("${all[@]}")
for part in "${parts[@]}"; do
  if [[ " ${all[*]} " != *" $part "* ]]; then
    echo "error: there is no part '$part'; there are ${all[*]}" >&2
    exit 2
  fi
done
if ! command -v "$python" >/dev/null; then
  echo "error: $python was not found; PYTHON names the interpreter to use" >&2
  exit 2
fi

export LOWBIT_LIBRARY=${LOWBIT_LIBRARY:-$root/lib/liblowbit.so}
export PYTHONPATH=$root/bindings/python${PYTHONPATH:+:$PYTHONPATH}
# The bundle stays as its checksums say.
export PYTHONDONTWRITEBYTECODE=1

if [ -f "$root/SHA256SUMS" ] && ! (cd -- "$root" && sha256sum --check --quiet SHA256SUMS); then
  echo "error: the bundle is not as it was made" >&2
  exit 2
fi
mkdir -p -- "$out" || exit 2

status=0
run_part() {
  # A result of an earlier run must not stand for a part that crashes now.
  rm -f -- "$out/$1.json"
  "$python" "$here/run_part.py" "$1" "$out"
}

run_concurrently() {
  local part
  local -A processes
  # Other parts need device memory, too.
  export XLA_PYTHON_CLIENT_PREALLOCATE=false
  for part in "$@"; do
    run_part "$part" >"$out/$part.log" 2>&1 &
    processes[$part]=$!
  done
  for part in "$@"; do
    wait "${processes[$part]}" || status=1
    cat -- "$out/$part.log"
  done
}

run_part probe || status=1
ran=(probe)
if [ $status -eq 0 ]; then
  together=()
  behind=()
  for part in "${parts[@]}"; do
    [ "$part" = probe ] && continue
    ran+=("$part")
    if [ -n "$concurrent" ] && [[ " ${checking[*]} " = *" $part "* ]]; then
      together+=("$part")
    else
      behind+=("$part")
    fi
  done
  run_concurrently "${together[@]}"
  for part in "${behind[@]}"; do
    run_part "$part" || status=1
  done
else
  echo "the GPU cannot be used: nothing else was run" >&2
fi
"$python" "$here/summary.py" "$out" "${ran[@]}" || status=1
exit $status
