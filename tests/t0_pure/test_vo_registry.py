"""The CDA on the fabric's own memory bucket: revocations reach a watcher, and a registry without leader ends in a clear error."""

from __future__ import annotations

import asyncio
import contextlib
import functools

import pytest

from vo_kit import ROOT, World
from xtreemos.errors import Unreachable
from xtreemos.testing.kv import MemoryBucket
from xtreemos.vo.cda import Cda
from xtreemos.vo.registry import Registry
from xtreemos.vo.revocation import RevocationSet
from xtreemos.vo.watching import follow


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.vo_bucket, world.pub = MemoryBucket("vo", clock=world.clock), MemoryBucket("pub", clock=world.clock)
    world.registry = Registry(world.vo_bucket, world.pub)
    world.cda = world.another_cda()
    assert isinstance(world.cda, Cda)
    yield world
    world.passwords.close()
    world.audit.close()


@contextlib.asynccontextmanager
async def following(world, revoked, told):
    async def note(key, _record):
        told.put_nowait(key)

    task = asyncio.create_task(follow(functools.partial(anext, world.pub.watch("revoked.>")), revoked, note, world.clock))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_a_revocation_reaches_a_watching_node_and_one_that_starts_later(world):
    async def scene():
        early, late, told = RevocationSet(), RevocationSet(), asyncio.Queue()
        async with following(world, early, told):
            await world.member()
            got = await world.login()
            caller = world.caller(got)
            assert not early.covers(caller, got.issued_at)
            await world.cda.call("revoke_session", ROOT, {"sid": got.sid})
            assert await asyncio.wait_for(told.get(), 5) == f"revoked.sid.{got.sid}"
            assert early.covers(caller, got.issued_at)
        async with following(world, late, told):
            await asyncio.wait_for(told.get(), 5)
        return late.covers(caller, got.issued_at)

    assert asyncio.run(scene())


def test_a_suspension_reaches_a_watching_node_with_every_session(world):
    async def scene():
        revoked, told = RevocationSet(), asyncio.Queue()
        async with following(world, revoked, told):
            await world.member()
            sessions = [await world.login() for _ in range(3)]
            await world.cda.call("suspend", ROOT, {"user": "alice"})
            keys = {await asyncio.wait_for(told.get(), 5) for _ in range(4)}
        assert keys == {"revoked.user.alice", *(f"revoked.sid.{got.sid}" for got in sessions)}
        return all(revoked.covers(world.caller(got), got.issued_at) for got in sessions)

    assert asyncio.run(scene())


def test_sessions_and_tokens_end_by_themselves(world):
    async def scene():
        await world.member()
        await world.login()
        await world.cda.call("resource_invite", ROOT, {})
        kept = len(await world.vo_bucket.keys())
        world.clock.now += 8 * 86_400
        world.vo_bucket.expire()
        return kept, await world.vo_bucket.keys()

    kept, left = asyncio.run(scene())
    assert kept == 3
    assert left == ["user.alice"]


def test_without_a_leader_a_login_ends_in_unreachable_and_is_audited(world):
    async def scene():
        await world.member()
        params = await world.login_params()
        world.vo_bucket.lose_leader()
        with pytest.raises(Unreachable):
            await world.cda.call("login", ROOT, params)
        world.vo_bucket.elect_leader()
        return await world.login()

    assert asyncio.run(scene()).name == "alice"
    assert [line["allowed"] for line in world.audited()] == [True, True, False, True]
