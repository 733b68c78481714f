#!/bin/sh
# usage: julia.sh PREFIX
#
# Unpacks Debian bullseye's Julia 1.5.3, the last one Debian has, under PREFIX on any Debian-like
# machine and leaves the machine's own packages alone. Start it as PREFIX/bin/julia.
#
# All of its libraries come from bullseye too. That makes the result the same on every machine, and
# it is what makes it work: with the libunwind of a later Debian, Julia 1.5.3 crashes when it throws.
# Only the C library, libgcc and libstdc++ stay the machine's: the dynamic loader has to match them,
# and what is built on the machine needs them as new as its compiler.
set -eu

. "$(dirname "$0")/apt.sh"

mkdir -p "$1"
prefix=$(cd "$1" && pwd)
open_apt "$prefix/apt" bullseye
own_apt -q -y --download-only install julia

for deb in "$apt"/cache/archives/*.deb; do
	case ${deb##*/} in
	libc6_* | libcrypt1_* | libgcc-s1_* | libstdc++6_*) ;;                # the machine's own
	gcc-10-base_* | debconf_* | dpkg_* | perl-base_* | tar_*) ;;          # only to install packages
	*) dpkg-deb --extract "$deb" "$prefix" ;;
	esac
done
rm -rf "$apt"
for share in "$prefix"/usr/share/*; do
	[ "$share" = "$prefix/usr/share/julia" ] || rm -rf "$share"
done

# Julia opens its libraries by the links in its private folder.
private=$(echo "$prefix"/usr/lib/*/julia)
for link in "$private"/*.so; do
	[ -e "$link" ] || die "$link points to $(readlink "$link"), which is in none of the packages"
done

# The depot is kept inside too, so that nothing is written to the home folder (or needs one).
mkdir -p "$prefix/bin"
cat >"$prefix/bin/julia" <<'EOF'
#!/bin/sh
prefix=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
triplet=$(basename "$prefix"/usr/lib/*-linux-gnu*)
libraries=$prefix/usr/lib/$triplet/julia:$prefix/usr/lib/$triplet:$prefix/lib/$triplet
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export JULIA_DEPOT_PATH="${JULIA_DEPOT_PATH:-$prefix/depot}"
exec "$prefix/usr/bin/julia" "$@"
EOF
chmod +x "$prefix/bin/julia"
