"""A simulated client's way to one OSD. Knows nothing of leases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xtreemos.testing.simfs_net import Link, Promise
from xtreemos.testing.simfs_servers import SimOsd

if TYPE_CHECKING:
    from xtreemos.testing.simfs_daemon import SimDaemon

CONNECT_S = 0.2
SILENCE_S = 5.0
"""A request that is not answered for so long breaks its connection."""


class OsdLine:
    """The way to one OSD: requests in order, sent again on a new connection until they are answered."""

    def __init__(self, client: SimDaemon, osd: SimOsd) -> None:
        self.client, self.osd = client, osd
        self.link: Link | None = None
        self.waiting: dict[int, tuple[Any, float, Promise]] = {}
        self._once: set[int] = set()
        """Sent, and not to be sent again."""

    def ask(self, request: Any, give_up_s: float, *, once: bool) -> Promise:
        """Send a request."""
        number = next(self.client._numbers)  # noqa: SLF001  # a part of the client
        promise = Promise()
        self.waiting[number] = (request, give_up_s, promise)
        if once:
            self._once.add(number)
        if self.link is None:
            self._connect()
        else:
            self.link.send(self.client, ("req", number, *request))
        self._watch(number)
        return promise

    def answer(self, link: Link, message: Any) -> None:
        """An answer has come."""
        if link is self.link and message[1] in self.waiting:
            self.waiting.pop(message[1])[2].keep(message[2:])

    def broken(self, link: Link) -> None:
        """The connection is gone: what was not answered is sent again."""
        if link is self.link:
            self.link = None
            for number in self._once & self.waiting.keys():
                self.waiting.pop(number)[2].keep(None)
            self._connect()

    def _connect(self) -> None:
        self.link = self.client.net.connect(self.client, self.osd)
        if self.link is None:
            self.client.later(CONNECT_S, lambda: self.client.daemon(lambda: self._connect() if self.link is None else None))
            return
        self.link.send(self.client, ("hello", self.client.id))
        for number, (request, _give_up_s, _promise) in self.waiting.items():
            self.link.send(self.client, ("req", number, *request))

    def _watch(self, number: int) -> None:
        def look() -> None:
            if number not in self.waiting:
                return
            if self.client.now_s() >= self.waiting[number][1]:
                self.waiting.pop(number)[2].keep(None)
                return
            if self.link is not None:
                link = self.link
                link.cut()
                self.broken(link)
            self._watch(number)

        self.client.later(SILENCE_S, lambda: self.client.daemon(look))
