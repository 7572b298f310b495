#!/bin/bash
# Sets a checkout up: system packages, .venv, native programs, crun with CRIU. Fast when there is nothing to do, safe to repeat.
#
# Works on Debian 12 and 13 and Ubuntu 24.04, as root or by sudo. Nothing outside the checkout changes except installed system
# packages. Every step decides by itself whether it has anything to do; a step that costs time keeps a stamp under build/stamps.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022
mkdir -p build/stamps build/bin
exec 9>build/stamps/lock
flock 9 # two set-ups of one checkout must not run at once

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }
sum() { cat "$@" | sha256sum | cut -c1-16; }
stamped() { [ "$(cat "build/stamps/$1" 2>/dev/null)" = "$2" ]; }
stamp() { echo "$2" >"build/stamps/$1"; }
as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else
		command -v sudo >/dev/null || die "'$1' needs root: run as root or install sudo"
		sudo "$@"
	fi
}

# --- system packages -------------------------------------------------------------------------------------------------------
installed() { dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }
apt_updated=
apt_update() {
	[ -n "$apt_updated" ] && return
	as_root apt-get -q -o DPkg::Lock::Timeout=300 update >build/apt.log 2>&1 || say "apt-get update had errors (build/apt.log); going on"
	apt_updated=yes
}
apt_install() {
	apt_update
	say "installing $*"
	as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -q -y -o DPkg::Lock::Timeout=300 install \
		--no-install-recommends "$@" </dev/null >>build/apt.log 2>&1 ||
		{ tail -n 15 build/apt.log >&2; die "apt-get install failed; the whole story is in build/apt.log"; }
}
install_packages() {
	command -v dpkg-query >/dev/null || die "this is neither Debian nor Ubuntu: install the equivalents of tools/apt-packages.txt by hand"
	local name missing=()
	while read -r name _; do
		[ -z "$name" ] || [ "${name:0:1}" = "#" ] || installed "$name" || missing+=("$name")
	done <tools/apt-packages.txt
	[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

# --- Python ----------------------------------------------------------------------------------------------------------------
new_enough() { "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
find_python() {
	local candidate # the distribution's own first: a pyenv shim costs 30 ms and more a start
	for candidate in /usr/bin/python3 /usr/bin/python3.1[1-9] /usr/local/bin/python3 "$(command -v python3 || true)"; do
		[ -x "$candidate" ] && new_enough "$candidate" && { echo "$candidate"; return; }
	done
	die "no Python >= 3.11 with venv: install python3 and python3-venv"
}
install_python() {
	local python want
	[ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || { python=$(find_python); "$python" -m venv --clear .venv; rm -f build/stamps/venv; }
	want=$(sum pyproject.toml constraints.txt)
	if ! stamped venv "$want"; then
		say "installing Python packages into .venv"
		.venv/bin/python - <<'PY' >build/requirements.txt
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
print(*project["project"]["dependencies"], *project["dependency-groups"]["dev"], sep="\n")
PY
		.venv/bin/python -m pip install -q --disable-pip-version-check --no-input -r build/requirements.txt -c constraints.txt >build/pip.log 2>&1 ||
			{ tail -n 15 build/pip.log >&2; die "pip failed; the whole story is in build/pip.log"; }
		stamp venv "$want"
	fi
	# Relative, so that the checkout may be bind-mounted at another path.
	local site
	for site in .venv/lib/python3.*/site-packages; do echo ../../../../src >"$site/xtreemos.pth"; done
	.venv/bin/python -m compileall -q src >&2 || say "not every source file compiles" # grid users cannot write the byte code later
}

# --- native programs -------------------------------------------------------------------------------------------------------
compile() { # compile SOURCE TARGET: static, since it starts faster and runs in any container and mount namespace
	[ "$2" -nt "$1" ] && return
	gcc -O2 -s -Wall -Wextra -Werror -static "$1" -o "$2.new" || gcc -O2 -s -Wall -Wextra -Werror "$1" -o "$2.new" || die "cannot compile $1"
	mv -f "$2.new" "$2" # by rename: the old program may be running
}
build_native() {
	if ! command -v gcc >/dev/null; then
		say "no C compiler: the slower Python programs are used in place of src/xtreemos/native"
		return
	fi
	local source name
	for source in src/xtreemos/native/*.c; do
		[ -e "$source" ] || continue
		name=$(basename "$source" .c)
		[ "$name" = ghost ] && name=xos # the ghost is the fast front of the command as well
		compile "$source" "build/bin/$name"
	done
	[ ! -x build/bin/xos ] || ln -sfn xos build/bin/ghost
}
install_command() {
	if [ -x build/bin/xos ]; then
		ln -sfn ../../build/bin/xos .venv/bin/xos
	else
		rm -f .venv/bin/xos && install -m 755 tools/xos-launcher.sh .venv/bin/xos
	fi
	local alias
	for alias in xsub xps xkill xwait; do ln -sfn xos ".venv/bin/$alias"; done
}

# --- crun and CRIU ---------------------------------------------------------------------------------------------------------
crun_has_criu() { "$1" --version 2>/dev/null | grep -q -- +CRIU; }
criu_works() { # CRIU must be 4.1 or newer: 3.17 fails on kernels >= 6.13
	dpkg --compare-versions "$("$1" --version 2>/dev/null | sed -n 's/^Version: *//p')" ge 4.1
}
install_crun() {
	local want
	if command -v crun >/dev/null && crun_has_criu crun && PATH=$PATH:/usr/sbin command -v criu >/dev/null && PATH=$PATH:/usr/sbin criu_works criu &&
		ldconfig -p 2>/dev/null | grep -q libcriu.so.2; then
		return
	fi
	want=$(sum tools/private-crun.sh tools/prefixed.c)
	stamped crun "$want" && crun_has_criu build/tools/bin/crun && return
	apt_update
	if dpkg --compare-versions "$(apt-cache policy criu | sed -n 's/^ *Candidate: *//p' | grep -v none || echo 0)" ge 4.1 && apt-cache show libcriu2 >/dev/null 2>&1; then
		apt_install crun criu libcriu2
		return
	fi
	say "this suite has no crun with a CRIU that works: fetching a newer suite's into build/tools"
	if tools/private-crun.sh build/tools >build/crun.log 2>&1 && crun_has_criu build/tools/bin/crun; then
		stamp crun "$want"
	else
		tail -n 5 build/crun.log >&2
		say "no checkpoint and migration on this machine (build/crun.log); programs run all the same"
		command -v crun >/dev/null || apt_install crun
	fi
}

install_packages
install_python
build_native
install_command
install_crun
