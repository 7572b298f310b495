"""Calls of the node's job store for an event loop, many per transaction: durability costs one flush for all that come together."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from xtreemos.aem.nodestore import NodeStore, StoreBroken
from xtreemos.errors import XosError

T = TypeVar("T")


class GroupCommit:
    """Runs store calls for an event loop: calls that come while a commit is under way share the next one.

    With `executor` None the calls run on the loop itself (simulation, memory stores).
    """

    def __init__(self, store: NodeStore, executor: Executor | None) -> None:
        self._store = store
        self._executor = executor
        self._waiting: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._running: asyncio.Task[None] | None = None

    async def do(self, call: Callable[..., T], *args: Any) -> T:
        """Run `call(*args)` in the next transaction; returns (or raises what it raised) when that is on disk.

        Cancelling leaves it open whether the call was made.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((lambda: call(*args), future))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                calls = [call for call, _ in group]
                try:
                    results = (
                        self._commit(calls)
                        if self._executor is None
                        else await loop.run_in_executor(self._executor, self._commit, calls)
                    )
                except sqlite3.Error as error:
                    broken = StoreBroken("the node's job store failed", "look at the disk")
                    broken.__cause__ = error
                    results = [broken] * len(group)
                for (_, future), result in zip(group, results, strict=True):
                    _settle(future, result)
        finally:
            self._running = None

    def _commit(self, calls: list[Callable[[], Any]]) -> list[Any]:
        results: list[Any] = []
        with self._store.batch():
            for call in calls:
                try:
                    with self._store.batch():
                        results.append(call())
                except XosError as error:
                    results.append(error)
        return results


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
