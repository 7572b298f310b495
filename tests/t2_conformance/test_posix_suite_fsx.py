"""fsx and fsdiff are right: they pass on a local folder, find what is broken, and repeat what they found."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.testing import fsdiff, fsx
from xtreemos.testing.fsxclient import LocalClient, ProcessClient
from xtreemos.testing.fsxmodel import KINDS, Draw, Model, Op, Setting, operations, seek_problem
from xtreemos.testing.posix.calls import vocabulary

OPS = 1500


def exercised(folder, seed=7, client=LocalClient, **more):
    clients = [client(str(folder), seed, 2, "x") for _ in range(more.get("clients", 1))]
    setting = Setting(seed, clients=len(clients), kinds=fsx.supported(clients))
    model, draw = Model(setting), Draw(setting)
    try:
        return fsx.exercise((draw.next(model.files) for _ in range(OPS)), clients, model, 200, lambda _number: None)
    finally:
        for one in clients:
            one.close()


def test_operations_on_a_local_folder_show_no_difference(tmp_path):
    assert exercised(tmp_path, clients=3) == OPS
    assert os.listdir(tmp_path) == []


def test_one_seed_gives_the_same_operations_without_files():
    setting = Setting(3)
    first = list(operations(setting, 3000))
    assert first == list(operations(setting, 3000))
    assert {op.kind for op in first} == set(KINDS)
    assert first != list(operations(Setting(4), 3000))


def test_operations_stay_within_their_bounds():
    setting = Setting(5, file_bytes_max=50_000, op_bytes_max=9000)
    model, draw = Model(setting), Draw(setting)
    for _ in range(3000):
        op = draw.next(model.files)
        model.apply(op)
        assert all(len(content) <= setting.file_bytes_max for content in model.files), op


class LosesTails(LocalClient):
    def _write(self, op, fd):
        return super()._write(op._replace(length=op.length - 1) if op.length > 4096 else op, fd)


class ForgetsHoles(LocalClient):
    def _perform(self, op):
        return super()._perform(op._replace(kind="size") if op.kind == "punch" else op)


class AppendsLate(LocalClient):
    def _append(self, op, fd):
        return super()._write(op._replace(offset=0), fd)


class StaleMapping(LocalClient):
    def _mapread(self, op, fd):
        answer = super()._mapread(op, fd)
        return answer._replace(data=bytes(len(answer.data or b"")))


class GuessesHoles(LocalClient):
    def _seek(self, op, fd):
        return super()._seek(op, fd)._replace(data_at=None)


class Refuses(LocalClient):
    def _truncate(self, op, fd):
        raise OSError(5, "broken")


@pytest.mark.parametrize("client", [LosesTails, ForgetsHoles, AppendsLate, StaleMapping, GuessesHoles, Refuses])
def test_a_broken_client_is_found(tmp_path, client):
    failure = exercised(tmp_path, client=client)
    assert isinstance(failure, fsx.Failure)
    assert failure.problem
    assert failure.last[-1].kind in KINDS


def test_one_of_several_clients_that_sees_old_bytes_is_found(tmp_path):
    class Cached(LocalClient):
        def _read(self, op, fd):
            self.seen = getattr(self, "seen", {})
            return self.seen.setdefault((op.file, op.offset, op.length), super()._read(op, fd))

    (tmp_path / "a").mkdir()
    setting = Setting(1, files=1, clients=2)
    clients = [LocalClient(str(tmp_path / "a"), 1, 1, "x"), Cached(str(tmp_path / "a"), 1, 1, "x")]
    ops = [Op("write", 0, 0, 0, 10, 0), Op("read", 1, 0, 0, 10), Op("write", 0, 0, 0, 10, 500), Op("read", 1, 0, 0, 10)]
    failure = fsx.exercise(ops, clients, Model(setting), 100, lambda _number: None)
    assert isinstance(failure, fsx.Failure)
    assert failure.number == 3
    assert "differ" in failure.problem


def test_a_worker_process_does_the_same(tmp_path):
    setting = Setting(11, clients=2)
    clients = [
        LocalClient(str(tmp_path), 11, 2, "x"),
        ProcessClient(f"{sys.executable} -m xtreemos.testing.fsx --worker {tmp_path}", 11, 2, "x"),
    ]
    try:
        setting = Setting(11, clients=2, kinds=fsx.supported(clients))
        model, draw = Model(setting), Draw(setting)
        assert fsx.exercise((draw.next(model.files) for _ in range(500)), clients, model, 100, lambda _number: None) == 500
    finally:
        for one in clients:
            one.close()


def test_a_worker_that_ends_is_a_finding():
    client = ProcessClient(f"{sys.executable} -c pass", 1, 1, "x")
    client._worker.wait()
    assert "the worker ended" in client.perform(Op("size", 0, 0, 0, 0)).problem
    client.close()


@given(st.binary(max_size=40), st.data())
def test_the_model_changes_as_a_plain_file_would(text, data):
    model = Model(Setting(1, files=1))
    model.files[0].extend(text)
    offset, length = data.draw(st.integers(0, 50)), data.draw(st.integers(1, 20))
    source = data.draw(st.integers(0, 100))
    written = bytes(model._pool[source : source + length])
    assert model.apply(Op("write", 0, 0, offset, length, source)).size == max(len(text), offset + length)
    assert bytes(model.files[0]) == text.ljust(offset, b"\0")[:offset] + written + text[offset + length :]
    model.apply(Op("punch", 0, 0, offset, length))
    assert bytes(model.files[0]) == text.ljust(offset, b"\0")[:offset] + bytes(length) + text[offset + length :]


@pytest.mark.parametrize(
    ("data_at", "hole_at", "right"),
    [
        (4, 4, False),
        (2, 4, True),
        (0, 4, True),
        (3, 4, False),
        (None, 4, False),
        (0, 2, False),
        (0, None, False),
        (0, 0, True),
        (0, 6, True),
        (0, 7, False),
    ],
)
def test_seeking_may_hide_holes_but_no_data(data_at, hole_at, right):
    assert (seek_problem(bytearray(b"\0\0ab\0\0"), 0, data_at, hole_at) == "") is right


def test_a_failure_can_be_replayed(tmp_path):
    saved = tmp_path / "failure.json"
    ops = [list(op) for op in operations(Setting(2, files=2), 50)]
    saved.write_text(json.dumps({"setting": {"seed": 2, "files": 2}, "problem": "", "ops": ops}))
    command = [sys.executable, "-m", "xtreemos.testing.fsx", tmp_path, "--replay", saved]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50 operations without a difference" in done.stdout


@pytest.fixture
def pair(tmp_path):
    for name in ("truth", "tested"):
        (tmp_path / name).mkdir()
    return str(tmp_path / "truth"), str(tmp_path / "tested")


@pytest.mark.root
def test_two_local_folders_do_not_differ(pair):
    fsdiff.check(*pair, examples=15, steps=30)
    assert os.listdir(pair[0]) == os.listdir(pair[1]) == []


@pytest.mark.root
@pytest.mark.parametrize("name", ["ftruncate", "chmod", "setacl", "access"])
def test_a_folder_that_behaves_otherwise_is_found(pair, name):
    calls = vocabulary()
    right = calls[name]

    def wrong(process, place, *args):
        if "/tested/" in place.name:
            return None
        return right(process, place, *args)

    calls[name] = wrong
    with pytest.raises(fsdiff.Difference, match="what was done"):
        fsdiff.check(*pair, examples=150, steps=40, calls=calls, shrink=False)
    assert os.getresuid() == (0, 0, 0)
    assert os.listdir(pair[0]) == os.listdir(pair[1]) == []
