#!/usr/bin/env bash
# Compiles the trainer and its checks: build.sh BUILD_FOLDER LIBRARY_FOLDER
#
# LIBRARY_FOLDER has liblowbit.so. BUILD_FOLDER gets the programs `train` and `check`. cuBLAS is not
# needed to compile; the programs load it when they start.
#
# Environment:
#   NVCC        CUDA's compiler, 12 or newer (default: nvcc on PATH, else /usr/local/cuda/bin/nvcc)
#   ARCH        what to compile for (default: native, the GPU of this machine)
#   NVCCFLAGS   more of the compiler's options
set -euo pipefail

build=${1:?build.sh BUILD_FOLDER LIBRARY_FOLDER}
library=$(cd -- "${2:?build.sh BUILD_FOLDER LIBRARY_FOLDER}" && pwd)
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if ! command -v "$nvcc" >/dev/null; then
  echo "error: $nvcc was not found; NVCC names CUDA's compiler" >&2
  exit 2
fi

read -r -a more <<<"${NVCCFLAGS:-}"
flags=(-std=c++17 -O2 "-arch=${ARCH:-native}" -Xcompiler -Wall,-Wextra
  -I "$root/include" -I "$root/bindings/cpp" "${more[@]}")
# A compiler that was installed by pip does not look in its own package.
own=$(dirname -- "$(command -v "$nvcc")")/../lib
[ ! -f "$own/libcudart_static.a" ] || flags+=(-L "$own")

mkdir -p -- "$build"
pids=()
for program in train check; do
  "$nvcc" "${flags[@]}" "$here/$program.cu" -o "$build/$program" \
    -L "$library" -llowbit -Xlinker "-rpath=$library" -ldl &
  pids+=($!)
done
for pid in "${pids[@]}"; do
  wait "$pid"
done
