#!/bin/sh
# usage: torch_oldest.sh PREFIX
#
# Unpacks Debian bookworm's Python 3.11 with PyTorch 1.13 under PREFIX on any Debian-like machine and
# leaves the machine's own packages alone. Start it with PREFIX/run/python.
set -eu

. "$(dirname "$0")/apt.sh"

mkdir -p "$1"
prefix=$(cd "$1" && pwd)
open_apt "$prefix/apt" bookworm
# All that it needs, but for what every machine has and must not have twice in a process.
packages=$(own_apt -q --simulate install python3-torch | awk '$1 == "Inst" { print $2 }' |
	grep -v -x -E 'libc6|libc-bin|libgcc-s1|libstdc\+\+6|gcc-12-base|debconf|dpkg|perl.*|tar|tzdata')
download_debs $packages
unpack_debs "$prefix"
(cd "$prefix" && rm -rf etc sbin var usr/include usr/sbin usr/share)

# The prefix is found at run time, so that the folder may be moved or copied.
mkdir -p "$prefix/run"
cat >"$prefix/run/python" <<'EOF2'
#!/bin/sh
prefix=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
libraries=$(echo "$prefix"/usr/lib/*-linux-gnu*)
path=$libraries:$libraries/blas:$libraries/lapack:$prefix/usr/lib:$(echo "$prefix"/lib/*-linux-gnu*)
export LD_LIBRARY_PATH="$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$prefix/usr/lib/python3/dist-packages"
exec "$prefix/usr/bin/python3.11" "$@"
EOF2
chmod +x "$prefix/run/python"
