"""`xos fs` in a lab: what alice, bob and root of a node see when it works, and when it is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess

import pytest

from gridkit import until


@pytest.fixture(scope="module")
def volume(grid):
    """A volume of alice's, which bob may look into."""
    grid.out("xos fs rmvol tools --force --yes || true", user="alice")
    grid.out("xos fs mkvol tools --mode 0755 --quota 20G", user="alice")
    yield "tools"
    for folder in ("/root/tools-a", "/root/tools-r"):
        grid.sh(f"cd /; ! mountpoint -q {folder} || xos fs umount {folder} --lazy; rmdir {folder}", user=None)
    grid.sh("cd /; xos fs rmvol tools --force --yes", user="alice")


def refused(grid, script, code, **how) -> str:
    done = grid.sh(f"cd /; {script}", **how)
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == code, done
    assert len(lines) == 1, "an error is one line"
    return lines[0]


def rows(grid, **how):
    return {row["name"]: row for row in json.loads(grid.out("xos fs volumes --json", **how))}


def test_a_volume_is_listed_on_every_node_with_its_use(grid, volume):
    grid.out(f"head -c 300000 /dev/zero > /xos/demo/{volume}/zeros; sync /xos/demo/{volume}/zeros")
    row = rows(grid, user="bob", node="n2")[volume]
    assert (row["owner"], row["quota_bytes"], row["path"]) == ("alice", 20 << 30, f"/xos/demo/{volume}")
    assert until(lambda: rows(grid, user="bob", node="n2")[volume]["used_bytes"]) == 300_000
    assert re.search(rf"^{volume} +alice +293.0K +20.0G +2 ", grid.out("xos fs volumes"), re.MULTILINE)


def test_who_does_not_own_a_volume_is_refused_with_a_reason(grid, volume):
    for words in (f"rmvol {volume} --force --yes", f"quota {volume} --bytes 1M", f"events {volume}"):
        assert "bob does not own tools; ask its owner" in refused(grid, f"xos fs {words}", 77, user="bob")
    assert "exists already" in refused(grid, f"xos fs mkvol {volume}", 2, user="bob")
    assert "is not empty" in refused(grid, f"xos fs rmvol {volume}", 1)
    assert "no volume 'nope'" in refused(grid, "xos fs quota nope", 1)
    assert "needs root" in refused(grid, f"xos fs mount {volume} /tmp", 77)
    assert "--yes" in refused(grid, f"xos fs rmvol {volume} --force", 2)


def test_stat_tells_where_a_file_is(grid, volume):
    found = json.loads(grid.out(f"xos fs stat --json /xos/demo/{volume}/zeros"))
    assert (found["volume"], found["size"], found["layout"]["replicas"]) == (volume, 300_000, [["n1"]])
    assert "is not in the grid's files" in refused(grid, "xos fs stat /etc/passwd", 2)


def test_a_quota_of_a_user_is_kept(grid, volume):
    grid.out(f"xos fs quota {volume} --user alice --files 3")
    done = grid.sh(f"cd /xos/demo/{volume} && touch a b c")
    assert b"quota exceeded" in done.stderr
    table = json.loads(grid.out(f"xos fs quota {volume} --user alice --files none --json"))
    assert [row["files_max"] for row in table] == [0]
    grid.out(f"rm -f /xos/demo/{volume}/[abc]")


def test_what_is_imported_is_exported_the_same_and_not_copied_twice(grid, volume):
    script = f"""
    rm -rf /tmp/in /tmp/out; mkdir -p /tmp/in/sub; echo one > /tmp/in/a; ln /tmp/in/a /tmp/in/sub/b; ln -s ../a /tmp/in/sub/l; chmod 640 /tmp/in/a
    xos fs import /tmp/in {volume}:tree --verify && xos fs import /tmp/in {volume}:tree
    xos fs export {volume}:tree /tmp/out --verify
    diff -r /tmp/in /tmp/out && stat -c '%a %h %Y' /tmp/in/a /tmp/out/a && rm -rf /tmp/in /tmp/out"""
    lines = grid.out(script).splitlines()
    assert "0 files, 0B in" in lines[1]
    assert lines[-2] == lines[-1]
    assert "stranger in the grid's files" in refused(grid, f"xos fs import /etc/ssl {volume}", 77, user=None)


def test_events_name_what_happens(grid, volume):
    words = grid.inside("n2", "timeout", "20", "xos", "fs", "events", volume, user="alice")
    watching = subprocess.Popen(words, env=grid.env, stdout=subprocess.PIPE)
    text = bytearray()

    def told():
        grid.out(f"touch /xos/demo/{volume}/event; rm /xos/demo/{volume}/event")
        with contextlib.suppress(BlockingIOError):
            text.extend(os.read(watching.stdout.fileno(), 65536))
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
        return {("create", "event"), ("unlink", "event")} <= {(row.get("kind"), row.get("name")) for row in rows}

    try:
        os.set_blocking(watching.stdout.fileno(), False)
        until(told, "the change is told")
    finally:
        watching.kill()
        watching.wait()
        watching.stdout.close()


def test_root_mounts_a_volume_as_its_root_and_unmounts_it_when_all_is_safe(grid, volume):
    script = f"""cd /; mkdir -p /root/tools-a /root/tools-r
    xos fs mount {volume} /root/tools-a && xos fs mount --root {volume} /root/tools-r && xos fs mount
    head -c 3000000 /dev/urandom > /root/tools-r/big; chown 1234:55 /root/tools-r/big; sha256sum < /root/tools-r/big
    xos fs umount /root/tools-r && sha256sum < /xos/demo/{volume}/big
    exec 3< /root/tools-a/big; xos fs umount /root/tools-a; echo rc=$?; exec 3<&-
    xos fs umount /root/tools-a; xos fs mount"""
    grid.out("true", user="alice")
    done = grid.sh(script, user=None)
    out = done.stdout.decode()
    assert "by the ticket of alice" in out
    sums = re.findall(r"^([0-9a-f]{64})", out, re.MULTILINE)
    assert (len(sums), len(set(sums))) == (2, 1), done
    assert "rc=1" in out
    assert b"is in use by" in done.stderr
    assert out.endswith("nothing is mounted by `xos fs mount`\n")
    assert "carol is not logged in on this machine" in refused(grid, f"mkdir -p /tmp/m; xos fs mount {volume} /tmp/m --root --as carol", 77, user=None)


def test_health_is_told_to_root_of_a_core_node(grid):
    assert "no damage" in grid.out("cd /; xos fs scrub --node n2", user=None)
    assert grid.out("cd /; xos fs fsck", user=None) == "sound\n"
    assert "core nodes have one" in refused(grid, "xos fs fsck", 2, user=None, node="n2")
    assert {row["node"] for row in json.loads(grid.out("xos fs osds --json"))} == {"n1", "n2"}
    row = json.loads(grid.out("xos fs top --once --json"))
    assert row["mrcs"]["n1"]["up"]
    assert row["per_s"]["requests"] >= 0


def test_mending_stops_the_metadata_server_and_nobody_notices_but_by_waiting(grid, volume):
    before = grid.pid("n1", "mrc.demo")
    done = grid.sh("cd /; xos fs fsck --repair", user=None)
    assert done.stdout == b"sound\n"
    assert grid.pid("n1", "mrc.demo") not in (0, before)
    grid.out(f"echo on > /xos/demo/{volume}/after && cat /xos/demo/{volume}/after", node="n2")
