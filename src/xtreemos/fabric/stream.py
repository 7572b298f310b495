"""JetStream streams: making them, appending, reading in order. What nats-py's own layer does not do (notes/infra.md 2.3) is here.

Every write carries a `Nats-Msg-Id`, so a write of unknown outcome is repeated with the same id until it is known or the time
is up. Reads ask the leader. `Feed` is the one ordered reader under `consume` and the watches of `kv`: pull based (so its queue
is bounded by what it asked for), checks for gaps, watches heartbeats and builds a new consumer when anything is odd.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from xtreemos.fabric import subjects
from xtreemos.fabric.connection import Fabric, Subscription
from xtreemos.fabric.errors import ApiError, GapInStream, RevisionMismatch, Unreachable, UnsafeBucket
from xtreemos.fabric.link import Message

logger = logging.getLogger(__name__)
API = "$JS.API"
REPLICAS_MAX = 3
BATCH = 512
PULL_S = 10
HEARTBEAT_S = 1
HEARTBEATS_MISSED_MAX = 2.5
IDLE_MAX = 2
INACTIVE_S = 60
PROBE_S = 5
TRY_S = 2.0
DUPLICATES_S = 120
SECOND_NS = 1_000_000_000
# The servers' own numbers. Wait and try again: no leader yet, not the leader, peers not seen yet, insufficient resources, busy.
TRY_AGAIN = frozenset({10004, 10005, 10008, 10009, 10023, 10039, 10041, 10076, 10077, 10158, 10173, 10176, 10177})
WRONG_SEQUENCE = frozenset({10071, 10164})
NOT_FOUND = frozenset({10037, 10059, 10014})


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """A stored message. `time` is as the server wrote it (RFC 3339); `pending`: how many follow right now."""

    seq: int
    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Synced:
    """All that was there when the (re)sync began has been told."""

    revision: int = 0


@dataclass(frozen=True, slots=True)
class Restart:
    """Only between Feed and its users: what follows begins anew; the leader's newest message (of the filter) is `target`.

    The consumer may sit on a follower that lags (one that has just got its copy has nothing and says "0 pending"), so only a
    message at or after `target` proves that all there was has been told.
    """

    target: int


async def api(fabric: Fabric, name: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 10) -> dict[str, Any]:
    """Call the JetStream API; waits and tries again while there is no leader. Only for calls that may be repeated.

    Raises:
        ApiError: refused; nothing was done.
        Unreachable: no answer in time.
    """
    deadline_s = time.monotonic() + timeout_s
    data = json.dumps(body).encode() if body is not None else b""
    wait_s = 0.05
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            message = await fabric.request_message(f"{API}.{name}", data, min(TRY_S, max(0.05, left_s)))
            answer = json.loads(message.data)
            error = answer.get("error")
            if error is None:
                return dict(answer)
            failure: ApiError | Unreachable = _api_error(error)
            if isinstance(failure, ApiError) and failure.err_code not in TRY_AGAIN:
                raise failure
        except Unreachable as cause:
            failure = cause
        if time.monotonic() + wait_s > deadline_s:
            raise (
                failure
                if isinstance(failure, Unreachable)
                else Unreachable(f"the fabric is not ready: {failure.message}", definite=True)
            )
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
        wait_s = min(1.0, wait_s * 2)


def _api_error(error: Mapping[str, Any]) -> ApiError:
    return ApiError(str(error.get("description", "?")), err_code=int(error.get("err_code", 0)), status=int(error.get("code", 0)))


# ---- making streams


def copies_possible(fabric: Fabric) -> int:
    """How many copies a stream can have now: 3 if the fabric has three servers or more, else 1."""
    return REPLICAS_MAX if fabric.cluster_size >= REPLICAS_MAX else 1


async def ensure_stream(
    fabric: Fabric, config: Mapping[str, Any], *, copies: int | None = None, timeout_s: float = 20
) -> dict[str, Any]:
    """Make a stream or bring an existing one to `config`; returns the server's answer with `config` and `state`.

    `config` is as in the JetStream API, `name` and `subjects` at least; direct reads (stale) are always off. `copies`: replicas,
    1 or 3 (default: what is possible now); waits while the cluster is too small, never lowers them.
    """
    copies = copies or copies_possible(fabric)
    wanted = {
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": copies,
        "allow_direct": False,
        "duplicate_window": DUPLICATES_S * SECOND_NS,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        **config,
    }
    name = subjects.token(str(config["name"]))
    try:
        found = await api(fabric, f"STREAM.INFO.{name}", timeout_s=timeout_s)
    except ApiError as error:
        if error.err_code not in NOT_FOUND:
            raise
        with contextlib.suppress(ApiError):  # somebody else made it meanwhile: the update below brings it to `config`
            return await api(fabric, f"STREAM.CREATE.{name}", wanted, timeout_s=timeout_s)
        found = await api(fabric, f"STREAM.INFO.{name}", timeout_s=timeout_s)
    has = found["config"]
    wanted["num_replicas"] = max(copies, int(has.get("num_replicas", 1)))
    if all(has.get(key, type(value)()) == value for key, value in wanted.items()):
        return found
    return await api(fabric, f"STREAM.UPDATE.{name}", {**has, **wanted}, timeout_s=timeout_s)


async def stream_info(fabric: Fabric, name: str, *, timeout_s: float = 10) -> dict[str, Any]:
    """The server's description of a stream: `config`, `state` (`first_seq`, `last_seq`, ...), `cluster`."""
    return await api(fabric, f"STREAM.INFO.{subjects.token(name)}", timeout_s=timeout_s)


async def check_leader_reads(fabric: Fabric, name: str) -> dict[str, Any]:
    """Raise UnsafeBucket if a stream allows reads from followers, which may be stale; else its description."""
    info = await stream_info(fabric, name)
    if info["config"].get("allow_direct") or info["config"].get("mirror_direct"):
        raise UnsafeBucket(f"stream {name} allows stale reads", "it was not made by XtreemOS; remove it")
    return info


async def stream_names(fabric: Fabric) -> list[str]:
    """Names of all streams of the account, sorted."""
    names: list[str] = []
    while True:
        page = await api(fabric, "STREAM.NAMES", {"offset": len(names)})
        found = page.get("streams") or []
        names += found
        if not found or len(names) >= int(page.get("total", 0)):
            return sorted(set(names))


async def scale_streams(fabric: Fabric, copies: int, *, timeout_s: float = 60) -> list[str]:
    """Bring every stream to at least `copies` replicas and wait until that many servers hold all of it; returns their names."""
    names = await stream_names(fabric)
    for name in names:
        info = await stream_info(fabric, name)
        if int(info["config"]["num_replicas"]) < copies:
            await api(fabric, f"STREAM.UPDATE.{name}", {**info["config"], "num_replicas": copies}, timeout_s=timeout_s)
    deadline_s = time.monotonic() + timeout_s
    for name in names:
        if copies > 1:
            await wait_copies(fabric, name, copies, deadline_s)
    return names


async def wait_copies(fabric: Fabric, name: str, copies: int, deadline_s: float) -> None:
    """Wait until `copies` servers really hold the newest message of a stream (and so, as they copy in order, all).

    A stream's own report says `current` while a follower has not copied anything yet, and a leader killed then takes the only
    copy along [tried, 2.15.1]. But a consumer without replicas sits on a server by chance and counts what that one holds.
    """
    whole: set[str] = set()
    while len(whole) < copies:
        newest = await read_last(fabric, name, ">")
        info = await stream_info(fabric, name)
        if newest is None and _current(info, copies):
            return
        if newest is not None:
            whole |= await _holder_of(fabric, name, newest.seq)
        if time.monotonic() > deadline_s:
            raise Unreachable(f"stream {name} does not get its {copies} copies (only {sorted(whole)} have all)")
        await asyncio.sleep(0.02)  # replicas catch up without telling anybody


async def _holder_of(fabric: Fabric, name: str, seq: int) -> set[str]:
    """Ask one server, whichever it is, whether it holds message `seq`: its name if so."""
    consumer = f"p{secrets.token_hex(8)}"
    config = {"name": consumer, "ack_policy": "none", "deliver_policy": "by_start_sequence", "opt_start_seq": seq}
    config |= {"mem_storage": True, "num_replicas": 1, "inactive_threshold": PROBE_S * SECOND_NS}
    made = await api(fabric, f"CONSUMER.CREATE.{name}.{consumer}", {"stream_name": name, "config": config, "action": ""})
    with contextlib.suppress(Unreachable):  # it goes by itself after PROBE_S
        await fabric.publish(f"{API}.CONSUMER.DELETE.{name}.{consumer}", b"", timeout_s=0.5)
    holder = (made.get("cluster") or {}).get("leader")
    return {str(holder)} if holder and int(made.get("num_pending", 0)) > 0 else set()


def _current(info: Mapping[str, Any], copies: int) -> bool:
    cluster = info.get("cluster") or {}
    others = cluster.get("replicas") or []
    good = sum(1 for one in others if one.get("current") and not one.get("offline"))
    return bool(cluster.get("leader")) and good + 1 >= copies


# ---- writing


async def append(
    fabric: Fabric,
    subject: str,
    data: bytes,
    *,
    msg_id: str | None = None,
    expected_last: int | None = None,
    expected_subject_last: int | None = None,
    headers: Mapping[str, str] | None = None,
    stream: str | None = None,
    timeout_s: float = 10,
) -> int:
    """Store a message in the stream that captures `subject`; returns its sequence once it is safe on disk (of a majority).

    Repeats after an unknown outcome with the same id, so it is stored once, for as long as the stream's window of duplicates.

    `msg_id`: give one that lives longer than this call, to go on repeating later; default: a fresh one. `expected_last`: last
    sequence of the stream that the caller has seen; `expected_subject_last`: the same of this subject. `stream`: its name, for
    callers with an expectation who may read: it resolves an outcome that would be unknown otherwise.

    Raises:
        RevisionMismatch: an expectation does not hold; nothing was stored.
        Unreachable: unknown outcome when the time was up (`definite` if it was certainly not stored).
    """
    write = _Write(subject, dict(headers or {}), msg_id or secrets.token_hex(12), expected_last, expected_subject_last)
    deadline_s = time.monotonic() + timeout_s
    maybe_done = False
    wait_s = 0.02
    while True:
        try:
            left_s = max(0.05, deadline_s - time.monotonic())
            message = await fabric.request_message(subject, data, min(TRY_S, left_s), headers=write.all_headers())
            return read_ack(message, subject, write.expected)
        except RevisionMismatch:
            # The servers check expectations before duplicates [tried, 2.15.1]: after an unknown outcome it may be our own write.
            if not maybe_done:
                raise
            return await _was_it_ours(fabric, stream, write, max(1.0, deadline_s - time.monotonic()))
        except ApiError as error:
            if error.err_code not in TRY_AGAIN:
                raise
            failure = Unreachable(f"the fabric cannot store now: {error.message}", definite=True)
        except Unreachable as error:
            failure = error
        maybe_done = maybe_done or not failure.definite
        if time.monotonic() + wait_s > deadline_s:
            raise Unreachable(failure.message, failure.hint, definite=not maybe_done)
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
        wait_s = min(0.5, wait_s * 2)


@dataclass(frozen=True, slots=True)
class _Write:
    subject: str
    headers: dict[str, str]
    msg_id: str
    expected_last: int | None
    expected_subject_last: int | None

    @property
    def expected(self) -> int:
        return self.expected_subject_last or self.expected_last or 0

    def all_headers(self) -> dict[str, str]:
        made = {**self.headers, "Nats-Msg-Id": self.msg_id}
        if self.expected_last is not None:
            made["Nats-Expected-Last-Sequence"] = str(self.expected_last)
        if self.expected_subject_last is not None:
            made["Nats-Expected-Last-Subject-Sequence"] = str(self.expected_subject_last)
        return made


async def _was_it_ours(fabric: Fabric, stream: str | None, write: _Write, timeout_s: float) -> int:
    """After a mismatch that followed an unknown outcome: sequence of our write if it is what stands there."""
    if stream is not None:
        query = {"seq": write.expected_last + 1} if write.expected_last is not None else {"last_by_subj": write.subject}
        found = await _read(fabric, stream, query, timeout_s)
        if found is not None and found.headers.get("Nats-Msg-Id") == write.msg_id:
            return found.seq
        if write.expected_last is not None:
            raise RevisionMismatch(write.subject, write.expected)  # another's message took the place: ours was never stored
    raise Unreachable(f"the answer to a write of {write.subject} was lost, and somebody has written since", "read it again")


def read_ack(message: Message, subject: str, expected: int | None) -> int:
    """Sequence out of a publish acknowledgement; ApiError or RevisionMismatch if it is a refusal."""
    try:
        ack = json.loads(message.data)
    except ValueError:
        raise Unreachable(f"what answers on {subject} is not a stream") from None
    error = ack.get("error")
    if error is not None:
        if int(error.get("err_code", 0)) in WRONG_SEQUENCE:
            raise RevisionMismatch(subject, expected or 0)
        raise _api_error(error)
    return int(ack["seq"])


# ---- reading


async def read_last(fabric: Fabric, stream: str, subject: str, *, timeout_s: float = 10) -> StreamMessage | None:
    """Newest message of a subject, from the leader; None if there is none."""
    return await _read(fabric, stream, {"last_by_subj": subject}, timeout_s)


async def read_next(fabric: Fabric, stream: str, subject: str, from_seq: int, *, timeout_s: float = 10) -> StreamMessage | None:
    """First message of a subject (or pattern) at or after `from_seq`, from the leader; None if there is none."""
    return await _read(fabric, stream, {"seq": from_seq, "next_by_subj": subject}, timeout_s)


async def _read(fabric: Fabric, stream: str, query: Mapping[str, Any], timeout_s: float) -> StreamMessage | None:
    try:
        answer = await api(fabric, f"STREAM.MSG.GET.{stream}", query, timeout_s=timeout_s)
    except ApiError as error:
        if error.err_code == 10037:  # no message found
            return None
        raise
    stored = answer["message"]
    return StreamMessage(
        int(stored["seq"]), str(stored["subject"]), base64.b64decode(stored.get("data") or ""), _headers(stored.get("hdrs"))
    )


def _headers(encoded: str | None) -> dict[str, str]:
    if not encoded:
        return {}
    lines = base64.b64decode(encoded).decode(errors="replace").split("\r\n")[1:]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines if ":" in line)}


@dataclass(frozen=True, slots=True)
class _Position:
    """What the reply subject of a delivered message tells: consumer sequence from 1, stream sequence, messages that follow."""

    consumer_seq: int
    seq: int
    pending: int


def position(reply: str) -> _Position | None:
    """Read `$JS.ACK....`; None if it is something else."""
    parts = reply.split(".")
    if parts[:2] != ["$JS", "ACK"] or len(parts) < 9:
        return None
    # Old: stream.consumer.delivered.seq.cseq.time.pending; new: domain.account before these and a random part after.
    fields = parts[4:] if len(parts) == 9 else parts[6:]
    return _Position(int(fields[2]), int(fields[1]), int(fields[4]))


class _Odd(Exception):  # control flow of Feed only
    """Something does not fit: begin anew."""


class Feed:
    """Ordered messages of a stream: yields Restart, then StreamMessages without gap, then perhaps Restart again, for ever."""

    def __init__(self, fabric: Fabric, stream: str, filter_subject: str) -> None:
        self._fabric = fabric
        self._stream = subjects.token(stream)
        self._filter = filter_subject
        self._consumer = ""
        self._consumer_seq = 0
        self._newest = 0
        self._target = 0
        self._idle_count = 0

    async def events(self, deliver: Any) -> AsyncGenerator[Restart | StreamMessage, None]:
        """Read for ever. `deliver()` gives the part of the consumer's configuration that says where to begin, at each restart.

        Raises ApiError if the stream does not exist. Close the generator (aclose) to free the consumer.
        """
        wait_s = 0.05
        try:
            while True:
                try:
                    async for event in self._once(deliver()):
                        wait_s = 0.05
                        yield event
                except (_Odd, Unreachable) as cause:
                    logger.debug("feed of %s begins anew: %s", self._stream, cause)
                    await self._drop()
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
                    wait_s = min(2.0, wait_s * 2)
        finally:
            await self._drop()

    async def _drop(self) -> None:
        consumer, self._consumer = self._consumer, ""
        if consumer and self._fabric.state.connected:
            with contextlib.suppress(Unreachable):  # it goes by itself after INACTIVE_S
                await self._fabric.publish(f"{API}.CONSUMER.DELETE.{self._stream}.{consumer}", b"", timeout_s=0.5)

    async def _once(self, deliver: Mapping[str, Any]) -> AsyncIterator[Restart | StreamMessage]:
        inbox = f"{self._fabric.settings.inbox}.f{secrets.token_hex(8)}"
        answers = await self._fabric.listen(inbox, pending_max=BATCH + 64)
        try:
            await self._make_consumer(deliver)
            newest = await read_last(self._fabric, self._stream, self._filter, timeout_s=TRY_S * 2)
            self._newest, self._target = int(deliver.get("opt_start_seq", 1)) - 1, newest.seq if newest else 0
            yield Restart(self._target)
            while True:
                async for message in self._pull(inbox, answers):
                    yield message
        finally:
            await answers.close()

    async def _make_consumer(self, deliver: Mapping[str, Any]) -> None:
        self._consumer = f"f{secrets.token_hex(8)}"
        self._consumer_seq = 0
        config = {
            "name": self._consumer,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,  # replicated consumers are Raft groups of their own: too dear
            "inactive_threshold": INACTIVE_S * SECOND_NS,
            "max_waiting": 8,
            **deliver,
        }
        subject = f"CONSUMER.CREATE.{self._stream}.{self._consumer}"
        if self._filter != ">":
            config["filter_subject"] = self._filter
            subject += f".{self._filter}"
        await api(self._fabric, subject, {"stream_name": self._stream, "config": config, "action": ""}, timeout_s=TRY_S * 2)

    async def _pull(self, inbox: str, answers: Subscription) -> AsyncIterator[StreamMessage]:
        """One pull request to its end: BATCH messages, or PULL_S without so many."""
        body = {"batch": BATCH, "expires": PULL_S * SECOND_NS, "idle_heartbeat": HEARTBEAT_S * SECOND_NS}
        reply = f"{API}.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        await self._fabric.publish(reply, json.dumps(body).encode(), reply=inbox, timeout_s=TRY_S)
        got = 0
        while got < BATCH:
            try:
                message = await answers.next(HEARTBEAT_S * HEARTBEATS_MISSED_MAX)
            except TimeoutError:
                raise _Odd("no heartbeat") from None
            if message is None:
                raise _Odd("reconnected")
            if message.status:
                if self._ended(message, got):
                    return
                continue
            got += 1
            yield self._checked(message)

    def _ended(self, message: Message, got: int) -> bool:
        """Tell whether a status message ends the pull; raise _Odd if it tells of trouble."""
        if message.status == "100":
            self._idle_count += 1
            if self._newest < self._target and self._idle_count >= IDLE_MAX:
                raise _Odd("the consumer is idle but lacks messages")
            return False
        if message.status == "408":
            left = message.headers.get("Nats-Pending-Messages")
            if left is not None and int(left) != BATCH - got:
                raise _Odd("messages were lost on the way")
            return True
        raise _Odd(f"{message.status} {message.headers.get('Description', '')}")

    def _checked(self, message: Message) -> StreamMessage:
        where = position(message.reply)
        if where is None or where.consumer_seq != self._consumer_seq + 1:
            raise _Odd("gap")
        self._consumer_seq += 1
        self._newest, self._idle_count = where.seq, 0
        return StreamMessage(where.seq, message.subject, message.data, message.headers, where.pending)


async def consume(
    fabric: Fabric, stream: str, from_seq: int = 1, *, subject: str = ">", whole: bool = True
) -> AsyncGenerator[StreamMessage | Synced, None]:
    """Read a stream in order from `from_seq` on, for ever, over restarts of servers; each message exactly once.

    Yields Synced when all that was stored at the start, or at a resync, has been told. Close it (aclose) when done.

    Raises:
        GapInStream: `whole` and messages at or after `from_seq` are no longer there, or the stream ends before `from_seq` - 1
            (it was made anew): rebuild from a snapshot.
    """
    next_seq = max(1, from_seq)
    feed = Feed(fabric, stream, subject)
    events = feed.events(lambda: {"deliver_policy": "by_start_sequence", "opt_start_seq": next_seq})
    target, syncing = 0, True
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Restart):
                await _check_whole(fabric, stream, next_seq, whole=whole)
                target, syncing = event.target, True
            elif event.seq >= next_seq:  # a follower that lags begins before what we asked for
                next_seq = event.seq + 1
                yield event
            if syncing and next_seq > target:
                syncing = False
                yield Synced(next_seq - 1)


async def _check_whole(fabric: Fabric, stream: str, next_seq: int, *, whole: bool) -> None:
    state = (await stream_info(fabric, stream))["state"]
    first, last = int(state["first_seq"]), int(state["last_seq"])
    if last + 1 < next_seq or (whole and first > next_seq):
        raise GapInStream(stream, next_seq, first)
