# Sourced by the scripts that unpack Debian packages into a folder. `die`, then an apt of our own,
# with one suite of Debian as its only source and no package installed, so that it fetches what is
# asked for and leaves the machine's packages alone. With a status file of its own it also needs no
# right to the system's.

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# open_apt FOLDER SUITE: afterwards `own_apt` runs that apt-get; debs land in FOLDER/cache/archives.
open_apt() {
	apt=$1
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -r "$keyring" ] || die "$keyring is missing: install the package debian-archive-keyring"

	# apt itself knows both kinds of sources files, and its lists may never have been fetched.
	mirrors=$(apt-get indextargets --no-release-info --format '$(REPO_URI) $(COMPONENT)' |
		awk '$2 == "main" && !seen[$1]++ { print $1 }')

	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
	: >"$apt/status"
	cat >"$apt/apt.conf" <<END
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
END

	# Not every source of the machine is Debian's: take the first with the suite that Debian signed.
	for mirror in $mirrors; do
		echo "deb [signed-by=$keyring] $mirror $2 main" >"$apt/sources.list"
		if own_apt -q update; then return; fi
	done
	die "none of the sources of apt has Debian $2:" $mirrors
}

# download_debs PACKAGE...: these alone, not what they depend on.
download_debs() {
	(cd "$apt/cache/archives" && own_apt -q download "$@")
}

# unpack_debs FOLDER: unpacks there what `own_apt` has fetched, and removes that apt.
unpack_debs() {
	for deb in "$apt"/cache/archives/*.deb; do
		dpkg-deb --extract "$deb" "$1"
	done
	rm -rf "$apt"
}

own_apt() {
	apt-get --config-file "$apt/apt.conf" "$@"
}
