"""`xos://` passes fsspec's own conformance kit, on an ordinary folder in place of the mount, and its transactions are whole."""

from __future__ import annotations

import os
import pickle

import fsspec
import pytest
from fsspec.tests.abstract import AbstractFixtures, copy, get, mv, open, pipe, put  # noqa: A004  # the names are theirs

from xtreemos.adapters.fsspec_xos import XosFileSystem


class Fixtures(AbstractFixtures):
    @pytest.fixture
    def fs(self, tmp_path):
        (tmp_path / "mount" / "vol").mkdir(parents=True)
        return XosFileSystem(mount=str(tmp_path / "mount"), auto_mkdir=True, skip_instance_cache=True)

    @pytest.fixture
    def fs_path(self):
        return "vol"


class TestCopy(Fixtures, copy.AbstractCopyTests):
    pass


class TestGet(Fixtures, get.AbstractGetTests):
    pass


class TestPut(Fixtures, put.AbstractPutTests):
    pass


class TestOpen(Fixtures, open.AbstractOpenTests):
    pass


class TestPipe(Fixtures, pipe.AbstractPipeTests):
    pass


class TestMv(Fixtures, getattr(mv, "AbstractMvTests", object)):
    pass


@pytest.fixture
def files(tmp_path):
    (tmp_path / "mount" / "vol").mkdir(parents=True)
    return XosFileSystem(mount=str(tmp_path / "mount"), skip_instance_cache=True)


def test_urls_lead_to_the_mount(files, tmp_path):
    with fsspec.open("xos://vol/a", "wb", mount=str(tmp_path / "mount")) as file:
        file.write(b"hello")
    assert (tmp_path / "mount/vol/a").read_bytes() == b"hello"
    assert files.ls("vol", detail=False) == ["vol/a"]
    assert files.info("xos://vol/a")["name"] == "vol/a"
    assert files.unstrip_protocol("vol/a") == "xos://vol/a"
    assert files.ls("", detail=False) == ["vol"]


def test_a_transaction_appears_at_its_end_by_renames_in_the_same_folder(files, tmp_path):
    with files.transaction:
        for name in ("a", "b"):
            with files.open(f"vol/{name}", "wb") as file:
                file.write(name.encode())
        assert not files.exists("vol/a")
        assert all(name.startswith(".xos-part-") for name in os.listdir(tmp_path / "mount/vol"))
    assert files.cat(["vol/a", "vol/b"]) == {"vol/a": b"a", "vol/b": b"b"}
    assert sorted(os.listdir(tmp_path / "mount/vol")) == ["a", "b"]


def test_a_transaction_that_fails_leaves_what_was_there(files, tmp_path):
    files.pipe("vol/a", b"old")

    def failing():
        with files.transaction, files.open("vol/a", "wb") as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert files.cat("vol/a") == b"old"
    assert os.listdir(tmp_path / "mount/vol") == ["a"]


def test_nothing_leads_out_of_the_mount(files):
    with pytest.raises(ValueError, match="escapes"):
        files.cat("vol/../../secret")


def test_links_are_relative(files, tmp_path):
    files.pipe("vol/a", b"x")
    files.symlink("vol/a", "vol/l")
    assert os.readlink(tmp_path / "mount/vol/l") == "a"
    assert files.islink("vol/l")
    assert files.cat("vol/l") == b"x"


def test_it_travels_to_other_processes(files):
    files.pipe("vol/a", b"x")
    assert pickle.loads(pickle.dumps(files)).cat("vol/a") == b"x"


def test_a_machine_without_the_files_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="not mounted"):
        XosFileSystem(mount=str(tmp_path / "none"), skip_instance_cache=True)
