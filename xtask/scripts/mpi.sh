#!/bin/sh
# usage: mpi.sh PREFIX
#
# Unpacks Debian bookworm's OpenMPI 4.1 under PREFIX on any Debian-like machine and leaves the
# machine's own packages alone. Compile with PREFIX/bin/mpicxx, start with PREFIX/bin/mpirun.
#
# Only what processes of one machine need: no drivers of network cards, and no plugin that needs
# one of their libraries (OpenMPI would complain about each at every start).
set -eu

. "$(dirname "$0")/apt.sh"

mkdir -p "$1"
prefix=$(cd "$1" && pwd)
open_apt "$prefix/apt" bookworm
download_debs openmpi-bin openmpi-common libopenmpi3 libopenmpi-dev libpmix2 libhwloc15 \
	libevent-core-2.1-7 libevent-pthreads-2.1-7 libmunge2
unpack_debs "$prefix"

libraries=$(echo "$prefix"/usr/lib/*-linux-gnu*)
for plugin in "$libraries"/openmpi/lib/openmpi3/*.so; do
	if LD_LIBRARY_PATH=$libraries ldd "$plugin" | grep -q 'not found'; then rm "$plugin"; fi
done

# The prefix is found at run time, so that the folder may be moved or copied.
mkdir -p "$prefix/bin"
cat >"$prefix/bin/mpirun" <<'EOF2'
#!/bin/sh
prefix=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
libraries=$(echo "$prefix"/usr/lib/*-linux-gnu*)
export OPAL_PREFIX="$prefix/usr" PMIX_INSTALL_PREFIX="$libraries/pmix2"
export PMIX_MCA_pcompress_base_silence_warning=1
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$prefix/usr/bin/orterun" "$@"
EOF2
cat >"$prefix/bin/mpicxx" <<'EOF2'
#!/bin/sh
prefix=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
libraries=$(echo "$prefix"/usr/lib/*-linux-gnu*)
# Without the C++ bindings, which MPI 3 removed.
exec "${CXX:-g++}" -DOMPI_SKIP_MPICXX -isystem "$libraries/openmpi/include" "$@" \
	-L"$libraries/openmpi/lib" -lmpi -Wl,-rpath,"$libraries" -Wl,-rpath-link,"$libraries"
EOF2
chmod +x "$prefix/bin/mpirun" "$prefix/bin/mpicxx"
