"""What `xos fs import` and `export` keep of a tree, and that they go on where they were stopped. Ordinary folders: no mount is needed."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from xtreemos.cli import fs_copy
from xtreemos.cli.fs_copy import Copier

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path):
    """A tree with one of everything."""
    top = tmp_path / "source"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "plain").write_bytes(b"hello")
    (top / "sub" / "script").write_bytes(b"#!/bin/sh\n")
    (top / "sub" / "script").chmod(0o4751)
    os.link(top / "plain", top / "sub" / "again")
    (top / "sub" / "link").symlink_to("../plain")
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "sub" / "fifo", 0o640)
    with (top / "sparse").open("wb") as file:
        file.seek(4 * MIB)
        file.write(b"end")
        file.truncate(6 * MIB)
    (top / os.fsdecode(b"bad\xff\nname")).write_bytes(b"x" * 3)
    os.setxattr(top / "plain", "user.colour", b"blue")
    (top / "sub" / "deep").chmod(0o2710)
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(path, ns=(1_000_000_000_123, 2_000_000_000_456), follow_symlinks=False)
    return top


def copied(tree, target, **how):
    copier = Copier(str(tree), str(target), threads=4, owners=False, **{"verify": False, **how})
    copier.run()
    return copier


def facts(top: Path):
    """All that must be equal, by relative path."""
    rows = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        mode = 0 if path.is_symlink() else stat.S_IMODE(status.st_mode)
        xattrs = {} if path.is_symlink() else {name: os.getxattr(path, name) for name in os.listxattr(path)}
        rows[path.relative_to(top)] = (stat.S_IFMT(status.st_mode), mode, status.st_mtime_ns, what, xattrs)
    return rows


def test_modes_times_xattrs_links_and_odd_names_are_kept(tree, tmp_path):
    tally = copied(tree, tmp_path / "copy").tally
    assert (tally.problem_count, tally.unkept) == (0, {})
    assert facts(tmp_path / "copy") == facts(tree)
    assert (tmp_path / "copy/plain").stat().st_ino == (tmp_path / "copy/sub/again").stat().st_ino


def test_holes_stay_holes(tree, tmp_path):
    copied(tree, tmp_path / "copy")
    assert (tmp_path / "copy/sparse").stat().st_size == 6 * MIB
    assert (tmp_path / "copy/sparse").stat().st_blocks * 512 < MIB


def test_a_second_run_copies_nothing(tree, tmp_path):
    copied(tree, tmp_path / "copy")
    before = {path: path.lstat().st_ctime_ns for path in (tmp_path / "copy").rglob("*") if path.is_file() and not path.is_symlink()}
    tally = copied(tree, tmp_path / "copy").tally
    assert tally.skipped == tally.files_total
    assert before == {path: path.lstat().st_ctime_ns for path in before}


def test_a_second_run_copies_what_changed(tree, tmp_path):
    copied(tree, tmp_path / "copy")
    (tree / "plain").write_bytes(b"other")
    copied(tree, tmp_path / "copy")
    assert (tmp_path / "copy/plain").read_bytes() == (tmp_path / "copy/sub/again").read_bytes() == b"other"


def test_a_stopped_copy_goes_on_inside_a_file(tmp_path, monkeypatch):
    source, target = tmp_path / "big", tmp_path / "copy"
    source.write_bytes(os.urandom(8 * MIB))
    written: list[int] = []
    real = fs_copy._written

    def counted(descriptor, data, at):
        written.append(at)
        if len(written) == 5:
            copier.stop()
        return real(descriptor, data, at)

    monkeypatch.setattr(fs_copy, "_written", counted)
    copier = Copier(str(source), str(target), threads=1, verify=False, owners=False)
    copier.run()
    assert not target.exists()
    assert len(list(tmp_path.glob(".xos-part-*"))) == 1
    written.clear()
    assert copied(source, target).tally.problem_count == 0
    assert written[0] == 4 * MIB, "all but the last MiB of the part was taken as it was"
    assert target.read_bytes() == source.read_bytes()
    assert not list(tmp_path.glob(".xos-part-*"))


def test_verify_finds_and_mends_a_copy_that_differs_under_the_right_size_and_time(tree, tmp_path):
    copied(tree, tmp_path / "copy")
    with (tmp_path / "copy/plain").open("r+b") as file:
        file.write(b"J")
    os.utime(tmp_path / "copy/plain", ns=(1_000_000_000_123, 2_000_000_000_456))
    assert copied(tree, tmp_path / "copy", verify=True).tally.problem_count == 0
    assert (tmp_path / "copy/plain").read_bytes() == b"hello"


def test_progress_ends_at_its_total(tree, tmp_path):
    for verify in (False, True):
        for _again in range(2):
            tally = copied(tree, tmp_path / f"copy{verify}", verify=verify).tally
            assert (tally.files, tally.bytes) == (tally.files_total, tally.bytes_total)


def test_what_is_in_the_way_is_told_and_the_rest_is_copied(tree, tmp_path):
    (tmp_path / "copy/plain").mkdir(parents=True)
    tally = copied(tree, tmp_path / "copy").tally
    assert any("plain" in line for line in tally.problems)
    assert (tmp_path / "copy/sub/script").exists()


def test_a_full_volume_ends_the_copy_at_once(tree, tmp_path, monkeypatch):
    def full(_descriptor, _data, _at):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(fs_copy, "_written", full)
    copier = copied(tree, tmp_path / "copy")
    assert copier.stopped
    assert "quota" in copier.fatal


def test_a_socket_is_named_as_not_kept(tmp_path):
    import socket

    (tmp_path / "source").mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "source/s"))
        assert copied(tmp_path / "source", tmp_path / "copy").tally.unkept == {"sockets": 1}


def test_many_small_files_are_found_while_they_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(fs_copy, "WAITING_MAX", 4)
    (tmp_path / "source").mkdir()
    for number in range(50):
        (tmp_path / "source" / str(number)).write_bytes(b"%d" % number)
    assert copied(tmp_path / "source", tmp_path / "copy").tally.files == 50
    assert threading.active_count() < 10
