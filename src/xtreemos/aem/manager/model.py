"""The words of detached jobs: rows of the job log, and the messages between manager, nodes and clients. No I/O, no clock.

Theory. A VO's job state is the fold of one log, JOBLOG, whose records are *absolute* rows (last one wins), so folding twice or
compacting by writing rows again is harmless. Only one manager writes: every append names the sequence it must follow, so a
deposed manager's append fails by itself. An attempt is (job, number); every placement takes a new number, and nodes never
accept the same one twice.

Times named `_s` are seconds on somebody's monotonic clock; `_at` are seconds since 1970, for people to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from xtreemos.errors import NotFound, TryLater, XosError

BEAT_S = 1.0
"""A node that holds attempts reports at least this often."""
IDLE_BEAT_S = 2.0
"""One that holds none does so; AWAY_S is two of them and some."""
AWAY_S = 5.0
"""A node that was not heard of for so long gets no new jobs and its jobs show as away."""
LEASE_S = 15.0
"""A node cut off for so long kills its attempts that may be started again elsewhere."""
LEASE_MARGIN_S = 8.0
"""What the manager waits on top: clock rates, the node's next look at its clock, a daemon restart, the kill itself."""
GONE_S = 24 * 3600.0
"""After this the attempts of a silent node are reported lost, although they may still run there."""
RESEND_S = 2.0
"""An order that was not confirmed is sent again after this."""
FULL_BACKOFF_S = 1.0
"""A node that said «full» is not asked again for the same job before this."""
REFUSED_BACKOFF_S = 30.0
"""The same for a node whose owner refused: his policy may change."""
GENTLE_S = 5.0
"""A signal that calls off a job whose start is under way has so long to find it; after that it is SIGKILL."""
KEEP_ENDED_S = 24 * 3600.0
KEEP_ENDED_MAX = 20_000
"""Ended jobs are listed this long, and this many of them."""
MESSAGE_BYTES_MAX = 900_000
"""Below the 1 MiB that the message servers take."""
LIVE_JOBS_MAX = 200_000
NAME_CHARS_MAX = 160
REPORT_ENDED_MAX = 500
LIST_ROWS_MAX = 1000

SIGKILL = 9
ENDING_SIGNALS = frozenset({1, 2, 3, 6, 9, 14, 15})
"""Signals by which a job that did not start yet is called off."""


class JobUnknown(NotFound):
    """No such job of yours; take its id from `xos ps`."""

    code = "no-such-job"


class NoManager(TryLater):
    """The VO's job manager does not answer; jobs already submitted are safe and go on. Try again in some seconds."""

    code = "no-job-manager"
    definite = False


class BadSubmission(XosError):
    """A submission is not what its user signed; it is not run."""

    fault = "caller"
    code = "bad-submission"


class BadMessage(XosError):
    """Bytes of another process are no message of ours; nothing was done with them."""

    fault = "peer"
    code = "bad-message"


class State(StrEnum):
    """Where a job is, as the log knows it."""

    QUEUED = "queued"
    PLACED = "placed"
    ENDED = "ended"


class Outcome(StrEnum):
    """How a job ended: it `exited` (the exit record says how), was `killed` before it started, was `lost`, or was `rejected`."""

    EXITED = "exited"
    KILLED = "killed"
    LOST = "lost"
    REJECTED = "rejected"


class Cause(StrEnum):
    """How an attempt ended, in a node's words.

    `refused` = certainly not started, another node may take it; `lost` = it ran or may have run and its result is not known.
    """

    EXITED = "exited"
    KILLED = "killed"
    LOST = "lost"
    REFUSED = "refused"


class Said(StrEnum):
    """A node's answer to one start: a repeated start gets the same answer for ever."""

    ACCEPTED = "accepted"
    ENDED = "ended"
    REFUSED = "refused"
    FULL = "full"
    EXPIRED = "expired"


class Row(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """All that the log knows of one job. `seq` = place of its submission; `losses` = attempts lost so far (<= retry).

    `store` names the node's job store by which the attempt was accepted: a node set up anew has another one and knows nothing.
    `cancelled`: its user called it off, so it is never started again. It is killed until it has ended, unless `signalled`: the gentler
    signal that he sent has reached it, and what it makes of that is its own affair.
    """

    job: str
    user: str
    seq: int
    name: str
    retry: int = 0
    submitted_at: float = 0.0
    state: State = State.QUEUED
    attempt: int = 0
    losses: int = 0
    node: str = ""
    store: str = ""
    cancelled: bool = False
    outcome: Outcome | None = None
    reason: str = ""
    exit: dict[str, Any] | None = None
    signalled: bool = False


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """One message of JOBLOG: `number` counts up within an `epoch` (= fencing token of the writer's lease).

    `seq`: every submission up to here is in the log or was forgotten on purpose.
    """

    epoch: int
    number: int
    seq: int
    rows: list[Row] = []
    forget: list[str] = []


class Live(msgspec.Struct, frozen=True, array_like=True):
    """An attempt that a node holds and that has not ended."""

    job: str
    attempt: int
    started_at: float | None = None


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """An attempt that ended on a node. `exit` is jobd's exit record, for cause `exited` only."""

    job: str
    attempt: int
    cause: Cause
    reason: str = ""
    exit: dict[str, Any] | None = None


class Capacity(msgspec.Struct, frozen=True, array_like=True):
    """What a node gives to detached jobs of this VO: `slots` at once in all, cores and bytes they may ask for in all."""

    slots: int = 0
    cpus: float = 0.0
    memory_bytes: int = 0


class Report(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A node's heartbeat and outbox. `clock_s` is the node's own clock when sent, good only with `clock_id` (= its boot)."""

    node: str
    store: str
    clock_id: str
    clock_s: float
    capacity: Capacity
    draining: bool = False
    facts_id: int = 0
    facts: dict[str, Any] | None = None
    live: list[Live] = []
    ended: list[Ended] = []


class ReportReply(msgspec.Struct, frozen=True, array_like=True):
    """The manager's answer, sent after `acks` are safe in the log: the node may forget them."""

    fence: int
    acks: list[tuple[str, int]] = []
    want_facts: bool = False


class Start(msgspec.Struct, frozen=True, array_like=True):
    """Start this attempt of the signed submission `record`; empty: that of the start before it (tasks of one array share one)."""

    job: str
    attempt: int
    record: bytes


class Kill(msgspec.Struct, frozen=True, array_like=True):
    """Send `signal` to an attempt; SIGKILL for one that the node does not know makes sure that it never starts there."""

    job: str
    attempt: int
    signal: int = SIGKILL


class Orders(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What the manager wants of a node. Void if `fence` is older than one seen, or if the store or boot is another.

    `seen_s` = `clock_s` of the node's last report: starts are void LEASE_S after it, so that a message that was long on its way
    does not start what meanwhile runs elsewhere.
    """

    fence: int
    store: str
    clock_id: str
    seen_s: float
    starts: list[Start] = []
    kills: list[Kill] = []


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What the node said to one start, durable on the node before it is sent."""

    job: str
    attempt: int
    said: Said
    reason: str = ""


class OrdersReply(msgspec.Struct, frozen=True, array_like=True):
    """`fence` = highest that the node has seen: if above ours, we are deposed. `valid` = False: wrong store or boot.

    `missed`: attempts whose signal found nothing to send it to.
    """

    fence: int
    valid: bool
    answers: list[Answer] = []
    missed: list[tuple[str, int]] = []


class Query(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A client's question. `after_seq`: answer only when submissions up to here are taken (a client sees what it submitted)."""

    method: str
    params: dict[str, Any] = {}
    after_seq: int = 0


class QueryReply(msgspec.Struct, frozen=True, array_like=True):
    """Either a result or an error's wire map."""

    result: Any = None
    error: dict[str, Any] | None = None


T = TypeVar("T")


def encode(message: msgspec.Struct) -> bytes:
    """Write any message of this module as MessagePack."""
    return msgspec.msgpack.encode(message)


def decode(raw: bytes, kind: type[T]) -> T:
    """Read a message of `kind`; raises BadMessage."""
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadMessage(f"a {kind.__name__} message cannot be read") from error


def short_name(argv: Sequence[str]) -> str:
    """Return a command line for listings: printable, one line, bounded."""
    text = " ".join(argv)
    return "".join(c if c.isprintable() else "?" for c in text[:NAME_CHARS_MAX])
