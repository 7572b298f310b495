#!/bin/sh
# .venv/bin/xos where no C compiler was there to build the fast front (src/xtreemos/native/ghost.c).
here=$(dirname "$(readlink -f "$0")")
case "${0##*/}" in
xsub | xps | xkill | xwait)
	verb=${0##*/}
	set -- "${verb#x}" "$@"
	;;
esac
exec "$here/python" -m xtreemos.cli "$@"
