#!/bin/bash
# All checks, cheapest first. Lint and types do not stop the tests: one run tells everything. pytest comes last, so that its own
# summary is the closing line. Arguments go to pytest: tools/test.sh tests/t0_pure -k lease.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export NO_MKDOCS_2_WARNING=1
failed=()

check() { # check NAME COMMAND...: quiet unless it fails
	local out
	out=$("${@:2}" 2>&1) && echo "$1: ok" && return
	printf '%s\n%s: FAILED\n' "$out" "$1"
	failed+=("$1")
}
sources=(src tests)
for extra in tools bench; do compgen -G "$extra/*.py" >/dev/null && sources+=("$extra"); done
check ruff .venv/bin/python -m ruff check --quiet "${sources[@]}"
check mypy .venv/bin/python -m mypy
[ ! -f mkdocs.yml ] || check docs .venv/bin/python -m mkdocs build --strict --quiet

XOS_FAILED_CHECKS="${failed[*]}" .venv/bin/python -m pytest -p no:cacheprovider "$@" </dev/null
status=$?
[ ${#failed[@]} = 0 ] || exit 1
exit $status
