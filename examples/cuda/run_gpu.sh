#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: compiles, checks, and trains a model of 86 million parameters with
# f32 and 4-bit states, with gradients kept and released. About a minute on an H100.
#
#   run_gpu.sh [TEXT]    a file or folder to train on (default: the Python standard library)
#
# Environment:
#   OUT       folder for programs and results (default: ./cuda-results): check.txt, kept.json,
#             kept-unclipped.json, released.json
#   LIBRARY   folder of liblowbit.so (default: lib, as in the bundle, else target/release)
#   STEPS     of each run (default: 300)
#   NVCC, ARCH, NVCCFLAGS as in build.sh
set -u -o pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
out=${OUT:-cuda-results}
steps=${STEPS:-300}
library=${LIBRARY:-$root/lib}
[ -f "$library/liblowbit.so" ] || library=$root/target/release
text=()
[ $# -eq 0 ] || text=(--text "$1")

mkdir -p -- "$out" || exit 2
"$here/build.sh" "$out" "$library" || exit 1

# Where cuBLAS may be besides the linker's own folders: in the toolkit, or in Python's packages.
for folder in /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
  $(python3 -c 'import glob, site, sys
for p in {*site.getsitepackages(), *sys.path}:
    print(*glob.glob(p + "/nvidia/*/lib"))' 2>/dev/null); do
  if compgen -G "$folder/libcublas.so*" >/dev/null; then
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
    break
  fi
done

status=0
"$out/check" | tee "$out/check.txt" || status=1

model=(--layers 12 --heads 12 --width 768 --context 256 --batch 16 --lr 0.0006 --steps "$steps")
run() {
  local name=$1
  shift
  rm -f -- "$out/$name.json"
  "$out/train" "${text[@]}" "${model[@]}" --json "$out/$name.json" "$@" || status=1
}
run kept --optimizers adamw32,adamw4,adamw4-block
# What release is compared with: it cannot clip.
run kept-unclipped --optimizers adamw4 --clip 0
run released --optimizers adamw4,adamw32 --clip 0 --release 1
exit $status
