#!/bin/bash
# Puts crun and CRIU of a newer suite into a private prefix: private-crun.sh PREFIX. The machine's own packages are not touched.
#
# The mirror, its key and the way to it come from the machine's own apt configuration. apt resolves the packages against an empty
# status file, so the prefix gets the loader and all libraries too. Layout: libexec/{crun,criu}, lib/ (with the loader as ld.so),
# bin/{crun,criu} = tools/prefixed.c, which finds its prefix wherever it is mounted.
set -euo pipefail
prefix=$(realpath -m "$1")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

. /etc/os-release
case "$ID" in
debian) origin=Debian suite=trixie component=main keyring=debian-archive-keyring.gpg ;;
ubuntu) origin=Ubuntu suite=resolute component='main universe' keyring=ubuntu-archive-keyring.gpg ;;
*) echo "no newer suite is known for $ID" && exit 1 ;;
esac
mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
	awk -v origin="$origin" '$1 == origin && $2 == "main" && $3 !~ /security/ { print $3; exit }')
[ -n "$mirror" ] || { echo "no $origin mirror among this machine's apt sources" && exit 1; }

mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/root"
: >"$work/status"
echo "deb [signed-by=/usr/share/keyrings/$keyring] $mirror $suite $component" >"$work/sources.list"
private_apt() {
	apt-get -q -y -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::Lists="$work/lists" \
		-o Dir::State::status="$work/status" -o Dir::State::extended_states="$work/extended" -o Dir::Cache="$work/cache" \
		-o APT::Install-Recommends=0 -o Acquire::Languages=none -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" "$@"
}
private_apt update
private_apt --download-only install crun criu libcriu2
for package in "$work"/cache/archives/*.deb; do dpkg -x "$package" "$work/root"; done

rm -rf "$prefix.new"
mkdir -p "$prefix.new"/{bin,lib,libexec}
find "$work/root" -path '*/bin/crun' -o -path '*/sbin/criu' | xargs -I{} install -m 755 {} "$prefix.new/libexec/"
find "$work/root" -regex '.*/lib/[^/]*-linux-gnu[^/]*/lib[^/]*\.so[^/]*' \( -type f -o -type l \) -exec cp -P {} "$prefix.new/lib/" \;
cp -L "$(find "$work/root" -name 'ld-linux*.so*' | head -n 1)" "$prefix.new/lib/ld.so"
gcc -O2 -Wall -Wextra -Werror -static "$here/prefixed.c" -o "$prefix.new/bin/crun"
cp "$prefix.new/bin/crun" "$prefix.new/bin/criu"
"$prefix.new/bin/crun" --version
"$prefix.new/bin/criu" --version
rm -rf "$prefix"
mv "$prefix.new" "$prefix"
