"""Which names the kernel is told of when they change."""

from xtreemos.xtreemfs.client import kernelnames
from xtreemos.xtreemfs.client.kernelnames import GENERATION_S, KernelNames
from xtreemos.xtreemfs.lease.model import LEASE_S


def noted(names: KernelNames, now_s: float, *rows: tuple[int, bytes]) -> None:
    assert names.has_room(now_s)
    for row in rows:
        names.note(*row)


def test_only_names_that_were_answered_are_told_of():
    names = KernelNames()
    noted(names, 1.0, (7, b"a"), (7, b"b"), (8, b"c"))
    assert names.of(7, (b"b", b"x")) == [b"b"]
    assert names.of(7) == [b"a", b"b"]
    assert names.of(9) == []
    assert names.has(8, b"c")
    assert not names.has(8, b"a")


def test_a_name_is_noted_for_longer_than_the_kernel_believes_it():
    assert GENERATION_S > LEASE_S
    names = KernelNames()
    noted(names, 100.0)
    noted(names, 100.0 + GENERATION_S - 0.1, (7, b"late"))
    noted(names, 100.0 + GENERATION_S, (7, b"next"))
    assert names.of(7) == [b"late", b"next"]
    noted(names, 100.0 + 2 * GENERATION_S)
    assert names.of(7) == [b"next"]
    noted(names, 100.0 + 3 * GENERATION_S)
    assert names.of(7) == []


def test_when_there_are_too_many_the_kernel_may_keep_no_more(monkeypatch):
    monkeypatch.setattr(kernelnames, "NOTES_MAX", 2)
    names = KernelNames()
    noted(names, 1.0, (7, b"a"), (7, b"a"))
    noted(names, 1.0, (7, b"b"))
    assert not names.has_room(1.0)
    names.forget(7)
    assert names.has_room(1.0)
    assert names.of(7) == []
