#!/bin/sh
# usage: doxygen.sh PREFIX
#
# Unpacks Debian bookworm's doxygen under PREFIX on any Debian-like machine and leaves the machine's own
# packages alone. Start it as PREFIX/bin/doxygen.
set -eu

. "$(dirname "$0")/apt.sh"

mkdir -p "$1"
prefix=$(cd "$1" && pwd)
open_apt "$prefix/apt" bookworm
download_debs doxygen libclang-cpp14 libclang1-14 libllvm14 libxapian30 libedit2 libz3-4 libtinfo6 \
	libxml2 libbsd0 libmd0 libicu72 liblzma5 libuuid1 libffi8 zlib1g
unpack_debs "$prefix"

# The prefix is found at run time, so that the folder may be moved or copied.
mkdir -p "$prefix/bin"
cat >"$prefix/bin/doxygen" <<'END'
#!/bin/sh
prefix=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
libraries=$(echo "$prefix"/usr/lib/*-linux-gnu*)
export LD_LIBRARY_PATH="$libraries:$(echo "$prefix"/lib/*-linux-gnu*)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$prefix/usr/bin/doxygen" "$@"
END
chmod +x "$prefix/bin/doxygen"
