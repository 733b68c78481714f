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

die() {
	echo "julia.sh: $*" >&2
	exit 1
}

mkdir -p "$1"
prefix=$(cd "$1" && pwd)
apt=$prefix/apt
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

[ -r "$keyring" ] || die "$keyring is missing: install the package debian-archive-keyring"

# apt itself knows both kinds of sources files, and its lists may never have been fetched.
mirrors=$(apt-get indextargets --no-release-info --format '$(REPO_URI) $(COMPONENT)' |
	awk '$2 == "main" && !seen[$1]++ { print $1 }')

# An apt of our own, with bullseye as its only source and no package installed, so that it fetches
# every dependency. With a status file of its own it also needs no right to the system's.
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
: >"$apt/status"
cat >"$apt/apt.conf" <<EOF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Cache::archives "$apt/cache/archives";
APT::Sandbox::User "";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
EOF

# Not every source of the machine is Debian's: take the first with a bullseye that Debian signed.
find_bullseye() {
	for mirror in $mirrors; do
		echo "deb [signed-by=$keyring] $mirror bullseye main" >"$apt/sources.list"
		if apt-get --config-file "$apt/apt.conf" -q update; then return; fi
	done
	die "none of the sources of apt has Debian bullseye:" $mirrors
}
find_bullseye
apt-get --config-file "$apt/apt.conf" -q -y --download-only install julia

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
