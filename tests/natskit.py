"""A real fabric for a module of tests, on one event loop that stays: `grid_of` makes it, `running` runs each claim on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

from xtreemos.testing.natsgrid import NatsGrid

World = tuple[asyncio.Runner, NatsGrid]


@contextlib.contextmanager
def grid_of(tmp_path_factory, prepare: Callable[[NatsGrid], Awaitable[None]], servers: int = 1) -> Iterator[World]:
    """Start servers and `prepare` them; stopped at the end, whatever happens."""
    with asyncio.Runner() as runner:
        grid = NatsGrid(tmp_path_factory.mktemp("grid"), servers=servers)
        try:
            runner.run(grid.start())
            runner.run(prepare(grid))
            yield runner, grid
        finally:
            runner.run(grid.stop())


async def nothing(_grid: NatsGrid) -> None:
    """Do nothing after a claim."""


def running(world: World, limit_s: float, after: Callable[[NatsGrid], Awaitable[None]] = nothing):
    """Return a function that runs `claim(grid)` and `after(grid)` in bounded time."""
    runner, grid = world

    def go(claim, limit_s=limit_s):
        async def main():
            async with asyncio.timeout(limit_s):
                await claim(grid)
                await after(grid)

        runner.run(main())

    return go
