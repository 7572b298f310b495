"""The audit: a chain in a file, and its head noted where the file's owner cannot reach."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from vo_kit import NOBODY, ROOT, START, World
from xtreemos.errors import Unreachable, XosError
from xtreemos.fabric.caller import Caller
from xtreemos.node import auditing
from xtreemos.node.auditing import check_noted, note_for_ever, noted_head
from xtreemos.vo.audit import GENESIS, Audit, AuditRecord, Head, verify_file
from xtreemos.vo.errors import AuditBroken, NotAllowed

N1, N2 = Caller("node", vo="demo", name="n1"), Caller("node", vo="demo", name="n2")


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.audit.close()


def filled(path, count, why=""):
    audit = Audit(path)
    for number in range(count):
        audit.append(AuditRecord(at=START + number, vo="demo", who="user alice@demo", what="test", allowed=True, why=why))
    return audit


@pytest.fixture
def audit(tmp_path):
    audit = filled(tmp_path / "n1.jsonl", 10)
    yield audit
    audit.close()


def noted(head):
    return {"count": head.count, "hash": head.hash}


def test_a_whole_file_agrees_with_every_head_that_it_ever_had(audit):
    heads = [Head(0, GENESIS)]
    for number in range(3):
        heads.append(audit.position())
        audit.append(AuditRecord(at=START, vo="demo", who="x", what=str(number), allowed=False))
    assert [verify_file(audit.path, head)[0] for head in heads] == [13] * 4
    assert "3 later ones" in check_noted(audit.path, noted(heads[1]))
    assert "not noted any" in check_noted(audit.path, None)


def cut(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))


def emptied(path):
    path.write_text("")


def swapped(path):
    """Two lines change places."""
    lines = path.read_text().splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    path.write_text("".join(lines))


def edited(path):
    path.write_text(path.read_text().replace("true", "false", 1))


def written_anew(path):
    """Another chain, whole in itself and as long."""
    path.unlink()
    filled(path, 10, why="nothing happened").close()


def cut_and_grown(path):
    """Cut, and then more decisions were written than were taken."""
    cut(path)
    filled(path, 5).close()


def removed(path):
    path.unlink()


@pytest.mark.parametrize("deed", [cut, emptied, swapped, edited, written_anew, cut_and_grown, removed])
def test_what_was_done_to_a_file_is_found(audit, deed):
    head = noted(audit.position())
    deed(audit.path)
    with pytest.raises(AuditBroken):
        check_noted(audit.path, head)


@pytest.mark.parametrize("deed", [cut, emptied, written_anew, cut_and_grown])
def test_the_chain_alone_does_not_tell_that(audit, deed):
    deed(audit.path)
    verify_file(audit.path)


def test_a_note_only_goes_forward_and_each_node_has_its_own(world):
    async def work():
        call = world.cda.call
        await call("audit_note", N1, {"count": 5, "hash": "a" * 64})
        await call("audit_note", N1, {"count": 5, "hash": "a" * 64})
        await call("audit_note", N2, {"count": 1, "hash": "b" * 64})
        for back in ({"count": 4, "hash": "a" * 64}, {"count": 5, "hash": "c" * 64}, {"count": 0, "hash": GENESIS}):
            with pytest.raises(AuditBroken):
                await call("audit_note", N1, back)
        with pytest.raises(XosError, match="no head"):
            await call("audit_note", N1, {"count": 6, "hash": "X"})
        for stranger in (NOBODY, Caller("user", vo="demo", name="alice"), ROOT, Caller("node", vo="other", name="n1")):
            with pytest.raises(NotAllowed):
                await call("audit_note", stranger, {"count": 9, "hash": "d" * 64})
        with pytest.raises(NotAllowed):
            await call("audit_heads", Caller("user", vo="demo", name="alice"), {})
        everything = (await call("audit_heads", ROOT, {}))["heads"]
        assert [(row["node"], row["count"], row["hash"][0]) for row in everything] == [("n1", 5, "a"), ("n2", 1, "b")]
        return (await call("audit_heads", N2, {}))["heads"]

    assert [row["node"] for row in asyncio.run(work())] == ["n2"]


def keep_noting(world, audit, rounds, between=lambda: None):
    """Let a node note its audit for some rounds; returns whether it still would."""

    async def work():
        asked = []

        async def ask(method, params):
            asked.append(method)
            return await world.cda.call(method, N1, params)

        noting = asyncio.create_task(note_for_ever("demo", audit, ask))
        async with asyncio.timeout(10):
            for _ in range(rounds):
                before = asked.count("audit_note")
                while asked.count("audit_note") == before and not noting.done():
                    await asyncio.sleep(0.001)
                between()
            await asyncio.sleep(0.01)
        goes_on = not noting.done()
        noting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await noting
        return goes_on, await noted_head(ask)

    return asyncio.run(work())


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(auditing, "NOTE_S", 0.001)
    monkeypatch.setattr(auditing, "AGAIN_S", 0.001)


@pytest.mark.usefixtures("at_once")
def test_a_node_notes_what_it_writes(world, audit):
    def decide():
        audit.append(AuditRecord(at=START, vo="demo", who="x", what="y", allowed=True))

    goes_on, head = keep_noting(world, audit, 3, decide)
    assert goes_on
    assert head.count >= 12
    check_noted(audit.path, noted(head))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("deed", [cut, emptied, written_anew])
@pytest.mark.log_warnings("nothing of it is noted any more")
def test_a_daemon_that_starts_on_a_file_that_was_touched_says_so_and_leaves_the_note_alone(world, audit, deed, caplog):
    _on, before = keep_noting(world, audit, 1)
    deed(audit.path)
    again = filled(audit.path, 50, why="later")  # it must not help to have grown
    with caplog.at_level(logging.ERROR):
        goes_on, head = keep_noting(world, again, 1)
    again.close()
    assert (goes_on, head) == (False, before)
    assert "noted any more" in caplog.text
    with pytest.raises(AuditBroken):
        check_noted(audit.path, noted(head))


@pytest.mark.usefixtures("at_once")
def test_a_vo_that_cannot_be_reached_is_asked_again(world, audit):
    answers = [Unreachable("away"), Unreachable("away")]

    async def work():
        done = asyncio.Event()

        async def ask(method, params):
            if answers:
                raise answers.pop()
            result = await world.cda.call(method, N1, params)
            if method == "audit_note":
                done.set()
            return result

        noting = asyncio.create_task(note_for_ever("demo", audit, ask))
        await asyncio.wait_for(done.wait(), 10)
        noting.cancel()
        return (await world.cda.call("audit_heads", N1, {}))["heads"][0]["count"]

    assert asyncio.run(work()) == 10
