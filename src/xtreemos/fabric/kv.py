"""Buckets: small shared state as keys with values, revisions and compare-and-swap, on a JetStream stream each.

Knows nothing of what is stored. Rules: reads come from the leader but are only hints (a deposed leader may answer), so every
decision ends in `create` or `update`, which check. A revision is the stream's sequence: it grows over the whole bucket,
never repeats, and so serves as a fencing token. `Store` is what other rooms should ask for; `testing.kv.MemoryBucket` is one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from xtreemos.fabric import stream as streams
from xtreemos.fabric import subjects
from xtreemos.fabric.connection import Fabric
from xtreemos.fabric.errors import KeyExists, RevisionMismatch, Unreachable
from xtreemos.fabric.stream import Feed, Restart, StreamMessage, Synced
from xtreemos.fabric.subjects import check_key, check_pattern, kv_stream, kv_subject, matches

logger = logging.getLogger(__name__)
MARKER_S = 300
DELETED_S = 3600
VALUE_BYTES_MAX = 512 << 10
CREATE_TRIES_MAX = 8
POLL_S = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value at a revision."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """A key that has gone: deleted or expired. `revision` is 0 if that was found out only by its absence."""

    key: str
    revision: int


WatchEvent = Entry | Deleted | Synced


class Store(Protocol):
    """What a bucket promises. Errors: KeyExists, RevisionMismatch (both: nothing written), Unreachable (see `definite`)."""

    name: str

    async def get(self, key: str) -> Entry | None:
        """Newest value as the leader knows it, or None. A hint: only `update` and `create` are sure."""

    async def create(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        """Write if there is no value; returns the revision. KeyExists."""

    async def update(self, key: str, value: bytes, revision: int, ttl_s: float | None = None) -> int:
        """Write if the key is still at `revision`; returns the new one. RevisionMismatch. Without `ttl_s` it stays for ever."""

    async def put(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        """Write whatever is there; returns the revision. Last writer wins: only for keys with one writer."""

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Remove, if given only at `revision` (RevisionMismatch). Deleting what is not there is fine."""

    async def entries(self, pattern: str = ">") -> list[Entry]:
        """All values whose keys match, sorted by key."""

    async def keys(self, pattern: str = ">") -> list[str]:
        """All keys that match, sorted."""

    def watch(self, pattern: str = ">") -> AsyncGenerator[WatchEvent, None]:
        """What is there, Synced, then each change; over restarts of servers, with Synced after each resync.

        Several changes of one key may be told as one. Deletions missed while away are told. Close it (aclose) when done.
        """


class WatchState:
    """Pure: turns what a (re)sync reads into what a watcher must be told. Nobody is told an older revision after a newer one."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._seen: set[str] | None = None
        self._went_back = False

    def begin(self, target: int) -> None:
        """A (re)sync begins: everything there will be read again; `target` is the newest revision there, as the leader says.

        Only if that is older than what is known has the bucket gone back in time (restored from a backup), and older revisions
        are news. Otherwise they come from a follower that lags, and the newer ones will come too.
        """
        self._seen = set()
        self._went_back = target < max(self._known.values(), default=0)

    @property
    def syncing(self) -> bool:
        return self._seen is not None

    def on(self, event: Entry | Deleted) -> list[WatchEvent]:
        """Something was read; returns it if it is news."""
        key, known = event.key, self._known.get(event.key)
        stale = known is not None and event.revision < known and not self._went_back
        if self._seen is not None:
            if isinstance(event, Entry) or stale:
                self._seen.add(key)
            else:
                self._seen.discard(key)
        if stale or event.revision == known:
            return []
        if isinstance(event, Deleted):
            return [event] if self._known.pop(key, None) is not None else []
        self._known[key] = event.revision
        return [event]

    def end(self, revision: int) -> list[WatchEvent]:
        """The (re)sync has read everything up to `revision`: what was not seen has gone."""
        seen, self._seen = self._seen or set(), None
        self._went_back = False
        gone = sorted(self._known.keys() - seen)
        for key in gone:
            del self._known[key]
        return [*(Deleted(key, 0) for key in gone), Synced(revision)]


def ttl_headers(ttl_s: float | None) -> dict[str, str]:
    """Header for a life of `ttl_s` seconds, rounded up to whole ones (the servers know no other)."""
    return {} if ttl_s is None else {"Nats-TTL": f"{max(1, math.ceil(ttl_s))}s"}


def is_gone(headers: Mapping[str, str]) -> bool:
    """Tell whether a stored message says that its key has no value: deleted by us, or by the server at the end of its life."""
    return headers.get("KV-Operation") in {"DEL", "PURGE"} or "Nats-Marker-Reason" in headers


def bucket_config(name: str, *, bytes_max: int = -1) -> dict[str, Any]:
    """Configuration of the stream behind a bucket."""
    return {
        "name": kv_stream(name),
        "subjects": [kv_subject(name, ">")],
        "max_msgs_per_subject": 1,
        "max_msg_size": VALUE_BYTES_MAX,
        "max_bytes": bytes_max,
        "allow_rollup_hdrs": True,  # the servers demand it for markers
        "deny_delete": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": MARKER_S * streams.SECOND_NS,
        "allow_atomic": True,
        "republish": {"src": kv_subject(name, ">"), "dest": subjects.published(name, ">")},
    }


async def ensure_bucket(
    fabric: Fabric, name: str, *, copies: int | None = None, bytes_max: int = -1, timeout_s: float = 20
) -> Bucket:
    """Make a bucket if it is not there, bring it to our settings, and open it. For the service role."""
    await streams.ensure_stream(fabric, bucket_config(name, bytes_max=bytes_max), copies=copies, timeout_s=timeout_s)
    return await open_bucket(fabric, name)


async def open_bucket(fabric: Fabric, name: str, *, follow: bool = False) -> Bucket:
    """Open a bucket that is there; UnsafeBucket if it allows stale reads, ApiError if it does not exist.

    `follow`: watch by what the servers repeat on `kv.<bucket>.>` instead of consumers. For roles that must not make consumers:
    whoever may make one chooses any subject to deliver to, and would speak for others.
    """
    await streams.check_leader_reads(fabric, kv_stream(name))
    return Bucket(fabric, name, follow=follow)


class Bucket:
    """A bucket of the fabric; see Store. Made by `ensure_bucket` or `open_bucket`."""

    def __init__(self, fabric: Fabric, name: str, *, follow: bool = False, timeout_s: float = 10) -> None:
        self.name = name
        self._fabric = fabric
        self._stream = kv_stream(name)
        self._prefix = kv_subject(name, "")
        self._follow = follow
        self._timeout_s = timeout_s

    async def get(self, key: str) -> Entry | None:
        stored = await self._last(key)
        return None if stored is None or is_gone(stored.headers) else Entry(key, stored.data, stored.seq)

    async def _last(self, key: str) -> StreamMessage | None:
        return await streams.read_last(self._fabric, self._stream, self._prefix + check_key(key), timeout_s=self._timeout_s)

    async def _write(self, key: str, value: bytes, expected: int | None, headers: Mapping[str, str]) -> int:
        try:
            return await streams.append(
                self._fabric,
                self._prefix + check_key(key),
                value,
                expected_subject_last=expected,
                headers=headers,
                stream=self._stream,
                timeout_s=self._timeout_s,
            )
        except RevisionMismatch:
            raise RevisionMismatch(key, expected or 0) from None

    async def create(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        expected = 0
        for _ in range(CREATE_TRIES_MAX):
            try:
                return await self._write(key, value, expected, ttl_headers(ttl_s))
            except RevisionMismatch:
                # Over a marker (of our delete, or of the server at the end of a life) one creates by CAS on the marker.
                last = await self._last(key)
                if last is not None and not is_gone(last.headers):
                    raise KeyExists(key) from None
                expected = last.seq if last is not None else 0
        raise RevisionMismatch(key, expected)

    async def update(self, key: str, value: bytes, revision: int, ttl_s: float | None = None) -> int:
        return await self._write(key, value, revision, ttl_headers(ttl_s))

    async def put(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        return await self._write(key, value, None, ttl_headers(ttl_s))

    async def delete(self, key: str, revision: int | None = None) -> None:
        await self._write(key, b"", revision, {"KV-Operation": "DEL", **ttl_headers(DELETED_S)})

    async def entries(self, pattern: str = ">") -> list[Entry]:
        found: dict[str, Entry] = {}
        async with contextlib.aclosing(self.watch(pattern)) as events:
            async for event in events:
                if isinstance(event, Entry):
                    found[event.key] = event
                elif isinstance(event, Deleted):
                    found.pop(event.key, None)
                else:
                    break
        return [found[key] for key in sorted(found)]

    async def keys(self, pattern: str = ">") -> list[str]:
        return [entry.key for entry in await self.entries(pattern)]

    def watch(self, pattern: str = ">") -> AsyncGenerator[WatchEvent, None]:
        check_pattern(pattern)
        return self._watch_published(pattern) if self._follow else self._watch_feed(pattern)

    def _event(self, message: StreamMessage) -> Entry | Deleted:
        key = message.subject.removeprefix(self._prefix)
        if is_gone(message.headers):
            return Deleted(key, message.seq)
        return Entry(key, message.data, message.seq)

    # ---- watching by a consumer

    async def _watch_feed(self, pattern: str) -> AsyncGenerator[WatchEvent, None]:
        state, newest, target = WatchState(), 0, 0
        feed = Feed(self._fabric, self._stream, self._prefix + pattern)
        async with contextlib.aclosing(feed.events(lambda: {"deliver_policy": "last_per_subject"})) as events:
            async for event in events:
                if isinstance(event, Restart):
                    newest, target = 0, event.target
                    state.begin(target)
                else:
                    newest = event.seq
                    for news in state.on(self._event(event)):
                        yield news
                if state.syncing and newest >= target:
                    for news in state.end(newest):
                        yield news

    # ---- watching by what the servers repeat

    async def _watch_published(self, pattern: str) -> AsyncGenerator[WatchEvent, None]:
        """Core messages may be lost: a gap in the bucket's sequence, or a newer one found by polling, leads to a resync."""
        state, wanted = WatchState(), pattern
        repeated = await self._fabric.listen(subjects.published(self.name, ">"))
        try:
            while True:
                seq = await self._last_seq()
                state.begin(seq)
                async for event in self._walk(wanted):
                    for news in state.on(event):
                        yield news
                for news in state.end(seq):
                    yield news
                async for message in self._follow_from(repeated, seq):
                    if matches(wanted, message.subject.removeprefix(self._prefix)):
                        for news in state.on(self._event(message)):
                            yield news
        finally:
            await repeated.close()

    async def _last_seq(self) -> int:
        info = await self._patient(lambda: streams.stream_info(self._fabric, self._stream, timeout_s=self._timeout_s))
        return int(info["state"]["last_seq"])

    async def _patient(self, call: Any) -> Any:
        """A watch never gives up: repeat while the fabric is away."""
        while True:
            try:
                return await call()
            except Unreachable as cause:
                logger.debug("watch of %s waits: %s", self.name, cause)

    async def _walk(self, pattern: str) -> AsyncGenerator[Entry | Deleted, None]:
        seq, subject = 0, self._prefix + pattern
        while True:
            at = seq + 1
            message = await self._patient(lambda: streams.read_next(self._fabric, self._stream, subject, at))  # noqa: B023
            if message is None:
                return
            seq = message.seq
            yield self._event(message)

    async def _follow_from(self, repeated: Any, seq: int) -> AsyncGenerator[StreamMessage, None]:
        """Messages after `seq` without gap; ends where one is missing."""
        silent_since_s = time.monotonic()
        while True:
            left_s = max(0.0, silent_since_s + POLL_S - time.monotonic())
            try:
                message = await repeated.next(left_s)
            except TimeoutError:
                if await self._last_seq() > seq:
                    return
                silent_since_s = time.monotonic()
                continue
            if message is None:
                return
            at = int(message.headers.get("Nats-Sequence", "0"))
            if at <= seq:
                continue
            if at != seq + 1:
                return
            seq, silent_since_s = at, time.monotonic()
            subject = message.headers.get("Nats-Subject", "")
            yield StreamMessage(at, subject, message.data, message.headers)
