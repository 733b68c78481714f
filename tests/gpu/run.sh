#!/usr/bin/env bash
# Checks the CUDA backend on a machine with an NVIDIA GPU: run.sh [PART...]
#
# Parts: probe, parity, streams, graph, xla, optimizers, finetune, sanitizer, timing, model, peers,
# offload; none named: all. The probe always comes first, and nothing else runs where it fails. xla
# needs JAX with CUDA, all others but the probe PyTorch with CUDA. Environment:
#   OUT               folder for the results (default: ./results)
#   PYTHON            interpreter (default: python3)
#   LOWBIT_SEED       seed of the random numbers (default: a fresh one, which is printed)
#   LOWBIT_LIBRARY    library to check (default: the bundle's)
#   LOWBIT_SANITIZER  compute-sanitizer (default: the bundle's, else the machine's)
set -u -o pipefail

all=(probe parity streams graph xla optimizers finetune sanitizer timing model peers offload)
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
python=${PYTHON:-python3}
out=${OUT:-results}

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

ran=()
status=0
run_part() {
  ran+=("$1")
  # A result of an earlier run must not stand for a part that crashes now.
  rm -f -- "$out/$1.json"
  "$python" "$here/run_part.py" "$1" "$out" || status=1
}

run_part probe
if [ $status -eq 0 ]; then
  for part in "${parts[@]}"; do
    [ "$part" = probe ] || run_part "$part"
  done
else
  echo "the GPU cannot be used: nothing else was run" >&2
fi
"$python" "$here/summary.py" "$out" "${ran[@]}" || status=1
exit $status
