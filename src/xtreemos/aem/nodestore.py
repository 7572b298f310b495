"""A node's durable memory of job attempts: what it accepted, what became of it, and what the manager was not told yet.

Why: an accepted attempt must end exactly once in the VO's books although xosd, jobd or the whole node dies at any moment. So
(job, attempt) is accepted at most once for ever (refusals are remembered too: a start message that comes twice or late gets
the same answer), results stay in the outbox until the manager has them in its log, and every change is on disk before anybody
hears of it (WAL, synchronous=FULL; changes that come together share one fsync, see `GroupCommit`).

Foreground jobs (`xos run`) use the same table with origin `run`; they have no outbox: their agent holds the line.
All VOs of the node share the table, and every look-up names its VO: a VO's manager and users never meet rows of another one.
It knows no network, no clock and no processes; times come in. Calls block for one fsync: use `GroupCommit` on an event loop.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import msgspec

from xtreemos.aem.jobspec import JobSpec
from xtreemos.aem.manager.model import LEASE_S, Answer, Cause, Ended, Said
from xtreemos.aem.manager.signed import peek_spec
from xtreemos.errors import XosError

SCHEMA_VERSION = 2
KEEP_ENDED_S = 7 * 24 * 3600.0
KEEP_ENDED_MAX = 50_000
KEEP_REFUSED_S = 3600.0
"""Refusals need to be remembered only as long as an old start message may still be on its way (`LEASE_S` and some)."""

SCHEMA = """
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,   -- 'version', 'store' (random name of this store, given once), 'fence.VO' (highest token of that VO's managers seen)
    value TEXT NOT NULL       -- as text; numbers in decimal
);
CREATE TABLE attempt (
    job         TEXT NOT NULL,              -- job id, j + 12 characters
    attempt     INTEGER NOT NULL,           -- number of the placement, from 1; jobd knows JOB.ATTEMPT
    origin      TEXT NOT NULL,              -- 'run': an agent holds the line; 'sub': a manager, told through the outbox
    vo          TEXT NOT NULL DEFAULT '',   -- the VO it runs in; '': of a version that did not note it, so nobody may ask for it
    user        TEXT NOT NULL,              -- who it runs for (name in the VO)
    name        TEXT NOT NULL,              -- command line for listings, bounded
    state       TEXT NOT NULL,              -- accepted: not given to jobd for certain | starting: may be or is running | ended | refused
    record      BLOB NOT NULL,              -- signed submission (sub) or MessagePack spec (run); emptied when ended
    leased      INTEGER NOT NULL,           -- 1: somebody may start the job again elsewhere, so it dies if the manager is not heard of
    life        TEXT NOT NULL DEFAULT '',   -- the life of jobd it was given to; another life does not know it any more
    fenced      INTEGER NOT NULL DEFAULT 0, -- 1: its lease ended and we kill it: whatever its exit says, its result is void
    accepted_at REAL NOT NULL,              -- seconds since 1970, for people
    started_at  REAL,                       -- the same; NULL: not known to run; may be lost with a power cut
    ended_at    REAL,                       -- the same; NULL: not ended
    cause       TEXT,                       -- exited | killed | lost | refused (of Said, if state is refused); NULL: not ended
    reason      TEXT NOT NULL DEFAULT '',   -- one line for people, if there is more to say than the exit
    exit        BLOB,                       -- jobd's exit record as MessagePack, for cause exited
    outbox      INTEGER NOT NULL DEFAULT 0, -- 1: the manager has not confirmed that this end is in its log
    UNIQUE (job, attempt)                   -- what makes a start idempotent
);
CREATE INDEX attempt_live   ON attempt (state)  WHERE state IN ('accepted', 'starting');
CREATE INDEX attempt_outbox ON attempt (outbox) WHERE outbox = 1;
CREATE INDEX attempt_ended  ON attempt (ended_at) WHERE state IN ('ended', 'refused');
"""

Origin = Literal["run", "sub"]


class StoreBroken(XosError):
    """The node's job store cannot be used; see the disk. Jobs that run go on, new ones are refused."""

    fault = "environment"
    code = "job-store-broken"


class AttemptState(StrEnum):
    """See the column `state`."""

    ACCEPTED = "accepted"
    STARTING = "starting"
    ENDED = "ended"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Offer:
    """An attempt that somebody wants started here; `refusal` = (full or refused, why) if the node does not take it."""

    job: str
    attempt: int
    vo: str
    user: str
    name: str
    record: bytes
    origin: Origin = "sub"
    leased: bool = False
    refusal: tuple[Said, str] | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One row, see the columns."""

    job: str
    attempt: int
    origin: Origin
    vo: str
    user: str
    name: str
    state: AttemptState
    record: bytes
    leased: bool
    life: str
    fenced: bool
    accepted_at: float
    started_at: float | None
    ended_at: float | None
    cause: str | None
    reason: str
    exit: dict[str, Any] | None
    outbox: bool

    @property
    def key(self) -> tuple[str, int]:
        """(job, attempt)."""
        return self.job, self.attempt


_COLUMNS = "job, attempt, origin, vo, user, name, state, record, leased, life, fenced, accepted_at, started_at, ended_at, cause, reason, exit, outbox"


def _attempt(row: Sequence[Any]) -> Attempt:
    (
        job, number, origin, vo, user, name, state, record, leased, life, fenced, accepted, started, ended, cause, reason, exit_, outbox,
    ) = row  # fmt: skip
    decoded = None if exit_ is None else msgspec.msgpack.decode(exit_)
    return Attempt(
        job, number, origin, vo, user, name, AttemptState(state), record, bool(leased), life, bool(fenced),
        accepted, started, ended, cause, reason, decoded, bool(outbox),
    )  # fmt: skip


class NodeStore:
    """The table of attempts in one SQLite file. Safe to call from several threads; each call is one transaction."""

    def __init__(self, path: str | os.PathLike[str], vos: Sequence[str] = ()) -> None:
        """Open or create the store at `path` (":memory:" for tests); raises StoreBroken.

        `vos`: the VOs of this node, for rows of a version that did not note them: if there is one VO, they are its.
        """
        self._lock = threading.RLock()
        self._depth = 0
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            with self.batch():
                self._create(vos)
        except sqlite3.Error as error:
            raise StoreBroken(f"the job store {path} cannot be opened", "look at the disk, then restart the node") from error
        self.store_id = self._meta("store")
        self._fences = {
            str(key).partition(".")[2]: int(value)
            for key, value in self._db.execute("SELECT key, value FROM meta WHERE key LIKE 'fence.%'")
        }

    def _create(self, vos: Sequence[str]) -> None:
        known = self._db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'attempt'").fetchone()[0]
        if not known:
            for statement in SCHEMA.split(";\n")[:-1]:
                self._db.execute(statement)
            values = [("version", str(SCHEMA_VERSION)), ("store", os.urandom(8).hex())]
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", values)
        elif int(self._meta("version")) > SCHEMA_VERSION:
            raise StoreBroken("the job store was written by a newer version", "upgrade this node")
        elif self._meta("version") == "1":
            self._note_vos(vos)

    def _note_vos(self, vos: Sequence[str]) -> None:
        """Bring version 1, which did not know VOs, to 2.

        On a node of one VO everything is its. On others only what has not ended still says whose it is; nobody may ask for the
        rest, and no token of a manager is known: one of the last seconds' orders would have to be of a deposed manager to matter.
        """
        self._db.execute("ALTER TABLE attempt ADD COLUMN vo TEXT NOT NULL DEFAULT ''")
        if len(vos) == 1:
            self._db.execute("UPDATE attempt SET vo = ?", (vos[0],))
            self._db.execute("UPDATE meta SET key = ? WHERE key = 'fence'", (f"fence.{vos[0]}",))
        else:
            for rowid, origin, record in self._db.execute(
                "SELECT rowid, origin, record FROM attempt WHERE record != x''"
            ).fetchall():
                self._db.execute("UPDATE attempt SET vo = ? WHERE rowid = ?", (_vo_of(origin, record), rowid))
            self._db.execute("DELETE FROM meta WHERE key = 'fence'")
        self._db.execute("UPDATE meta SET value = '2' WHERE key = 'version'")

    def _meta(self, key: str) -> str:
        return str(self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])

    def close(self) -> None:
        """Close the file; nothing is pending, every call committed."""
        with self._lock:
            self._db.close()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make all calls inside one transaction, one fsync; inside another batch, a savepoint that fails alone."""
        with self._lock:
            begin, end, undo = ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK") if self._depth == 0 else (
                f"SAVEPOINT s{self._depth}", f"RELEASE s{self._depth}", f"ROLLBACK TO s{self._depth}")  # fmt: skip
            self._db.execute(begin)
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                self._db.execute(undo)
                raise
            self._depth -= 1
            self._db.execute(end)

    def fence(self, vo: str) -> int:
        """Return the highest token of a manager of `vo` ever obeyed, 0 at first; orders with a lower one are void."""
        return self._fences.get(vo, 0)

    def raise_fence(self, vo: str, fence: int) -> bool:
        """Return whether orders of `vo` under `fence` are to be obeyed, and remember it if it is news (durably)."""
        if fence < self.fence(vo):
            return False
        if fence > self.fence(vo):
            with self.batch():
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"fence.{vo}", str(fence)))
            self._fences[vo] = fence
        return True

    def accept(self, offers: Sequence[Offer], now_at: float) -> list[Answer]:
        """Take attempts, or remember their refusal; answers in order of `offers`. Asked again, it answers the same."""
        with self.batch():
            return [self._accept(offer, now_at) for offer in offers]

    def _accept(self, offer: Offer, now_at: float) -> Answer:
        known = self._db.execute(
            "SELECT attempt, state, cause, reason, vo, user, origin FROM attempt WHERE job = ? ORDER BY attempt DESC LIMIT 1",
            (offer.job,),
        ).fetchone()
        if known and _is_of_another(offer, *known[4:]):
            return Answer(offer.job, offer.attempt, Said.REFUSED, "the job's name is taken on this node")
        if known and known[0] > offer.attempt:
            return Answer(offer.job, offer.attempt, Said.REFUSED, "a later attempt of it is known here")
        if known and known[0] == offer.attempt:
            return _same_answer(offer, known[1], known[2], known[3])
        state = AttemptState.REFUSED if offer.refusal else AttemptState.ACCEPTED
        said, reason = offer.refusal or (Said.ACCEPTED, "")
        self._db.execute(
            "INSERT INTO attempt (job, attempt, origin, vo, user, name, state, record, leased, accepted_at, ended_at, cause, reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                offer.job, offer.attempt, offer.origin, offer.vo, offer.user, offer.name, state, b"" if offer.refusal else offer.record,
                offer.leased, now_at, now_at if offer.refusal else None, said if offer.refusal else None, reason,
            ),
        )  # fmt: skip
        return Answer(offer.job, offer.attempt, said, reason)

    def hand_over(self, keys: Iterable[tuple[str, int]], life: str) -> list[tuple[str, int]]:
        """Note that accepted attempts are given to jobd in its life `life`, *before* they are; return those still wanted."""
        wanted = []
        with self.batch():
            for job, attempt in keys:
                done = self._db.execute(
                    "UPDATE attempt SET state = 'starting', life = ? WHERE job = ? AND attempt = ? AND state IN ('accepted', 'starting')",
                    (life, job, attempt),
                )
                if done.rowcount:
                    wanted.append((job, attempt))
        return wanted

    def started(self, job: str, attempt: int, started_at: float) -> None:
        """Note when it started; only for listings, so losing it would not matter."""
        with self.batch():
            self._db.execute(
                "UPDATE attempt SET started_at = ? WHERE job = ? AND attempt = ? AND state = 'starting'", (started_at, job, attempt)
            )

    def ended(self, ends: Sequence[Ended], now_at: float) -> list[tuple[str, int]]:
        """Note how attempts ended, once each; return those for which this was news. The end of a fenced attempt is `lost`."""
        news = []
        with self.batch():
            for end in ends:
                done = self._db.execute(
                    "UPDATE attempt SET state = 'ended', record = x'', ended_at = ?, exit = ?, outbox = (origin = 'sub'),"
                    " cause = CASE WHEN fenced THEN 'lost' ELSE ? END, reason = CASE WHEN fenced THEN reason ELSE ? END"
                    " WHERE job = ? AND attempt = ? AND state IN ('accepted', 'starting')",
                    (
                        now_at, None if end.exit is None else msgspec.msgpack.encode(end.exit),
                        end.cause, end.reason, end.job, end.attempt,
                    ),
                )  # fmt: skip
                if done.rowcount:
                    news.append((end.job, end.attempt))
        return news

    def withdraw(self, vo: str, user: str, job: str, attempt: int) -> None:
        """Take back the record of a user's foreground attempt that certainly does not run and never will."""
        with self.batch():
            self._db.execute(
                "DELETE FROM attempt WHERE vo = ? AND user = ? AND job = ? AND attempt = ? AND origin = 'run'",
                (vo, user, job, attempt),
            )

    def call_off(self, vo: str, job: str, attempt: int, now_at: float) -> bool:
        """Make sure that a detached attempt never starts here; return True if it may be running, so that it must be signalled.

        One that is not known at all is recorded as killed: a start that comes later finds it ended. One that is not this VO's or
        not detached is left alone.
        """
        with self.batch():
            row = self._db.execute("SELECT state, vo, origin FROM attempt WHERE job = ? AND attempt = ?", (job, attempt)).fetchone()
            if row is not None and row[1:] != (vo, "sub"):
                return False
            if row is None:
                self._db.execute(
                    "INSERT INTO attempt"
                    " (job, attempt, origin, vo, user, name, state, record, leased, accepted_at, ended_at, cause, reason, outbox)"
                    " VALUES (?, ?, 'sub', ?, '', '', 'ended', x'', 0, ?, ?, 'killed', 'killed before it started', 1)",
                    (job, attempt, vo, now_at, now_at),
                )
            elif row[0] == AttemptState.ACCEPTED:
                self.ended([Ended(job, attempt, Cause.KILLED, "killed before it started")], now_at)
            elif row[0] == AttemptState.REFUSED:  # the manager never heard of the refusal, or it would not ask
                self._db.execute(
                    "UPDATE attempt SET state = 'ended', cause = 'killed', outbox = 1 WHERE job = ? AND attempt = ?", (job, attempt)
                )
            return row is not None and row[0] == AttemptState.STARTING

    def mark_fenced(self, keys: Iterable[tuple[str, int]], reason: str, now_at: float) -> list[tuple[str, int]]:
        """Void attempts whose lease ended; return those that may be running and must be killed now."""
        running = []
        with self.batch():
            for job, attempt in keys:
                self._db.execute(
                    "UPDATE attempt SET fenced = 1, reason = ? WHERE job = ? AND attempt = ? AND state IN ('accepted', 'starting')",
                    (reason, job, attempt),
                )
                row = self._db.execute("SELECT state FROM attempt WHERE job = ? AND attempt = ?", (job, attempt)).fetchone()
                if row and row[0] == AttemptState.STARTING:
                    running.append((job, attempt))
                elif row and row[0] == AttemptState.ACCEPTED:
                    self.ended([Ended(job, attempt, Cause.LOST, reason)], now_at)
        return running

    def outbox(self, vo: str, limit: int) -> list[Ended]:
        """Return up to `limit` ends that the VO's manager has not confirmed, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT job, attempt, cause, reason, exit FROM attempt WHERE outbox = 1 AND vo = ? ORDER BY ended_at, rowid LIMIT ?",
                (vo, limit),
            ).fetchall()
        return [Ended(j, a, Cause(cause), why, None if e is None else msgspec.msgpack.decode(e)) for j, a, cause, why, e in rows]

    def acknowledge(self, vo: str, keys: Iterable[tuple[str, int]]) -> None:
        """Take a VO's ends off its outbox: they are in its manager's log.

        May itself be lost with a crash: the manager is then told again and confirms again.
        """
        with self.batch():
            self._db.executemany(
                "UPDATE attempt SET outbox = 0 WHERE vo = ? AND job = ? AND attempt = ? AND state = 'ended'",
                [(vo, job, attempt) for job, attempt in keys],
            )

    def live(self, origin: Origin | None = None, vo: str | None = None) -> list[Attempt]:
        """Return attempts that did not end (None: of every origin, of every VO), in order of acceptance."""
        where = "state IN ('accepted', 'starting') AND (?1 IS NULL OR origin = ?1) AND (?2 IS NULL OR vo = ?2) ORDER BY rowid"
        return self._select(where, (origin, vo))

    def get(self, vo: str, job: str, user: str | None = None) -> list[Attempt]:
        """Return all attempts of a VO's job that this node knows (with `user`: that are this user's), by number."""
        return self._select("job = ?1 AND vo = ?2 AND (?3 IS NULL OR user = ?3) ORDER BY attempt", (job, vo, user))

    def recent(self, limit: int) -> list[Attempt]:
        """Return the latest ended attempts, newest first."""
        return self._select("state = 'ended' ORDER BY ended_at DESC LIMIT ?", (limit,))

    def _select(self, where: str, values: tuple[Any, ...]) -> list[Attempt]:
        with self._lock:
            return [_attempt(row) for row in self._db.execute(f"SELECT {_COLUMNS} FROM attempt WHERE {where}", values)]  # noqa: S608  # our own text

    def prune(self, now_at: float, *, keep_s: float = KEEP_ENDED_S, keep_max: int = KEEP_ENDED_MAX) -> int:
        """Drop old ended attempts (never one in the outbox) and old refusals; return how many."""
        with self.batch():
            old = "DELETE FROM attempt WHERE state = ? AND outbox = 0 AND ended_at < ?"
            dropped = self._db.execute(old, ("refused", now_at - KEEP_REFUSED_S)).rowcount
            dropped += self._db.execute(old, ("ended", now_at - keep_s)).rowcount
            dropped += self._db.execute(
                "DELETE FROM attempt WHERE rowid IN (SELECT rowid FROM attempt WHERE state = 'ended' AND outbox = 0"
                " ORDER BY ended_at DESC LIMIT -1 OFFSET ?)", (keep_max,)
            ).rowcount  # fmt: skip
        return dropped


def _vo_of(origin: Origin, record: bytes) -> str:
    """Read whose attempt that did not end it is; "" if its record cannot be read."""
    try:
        return peek_spec(record).vo if origin == "sub" else msgspec.msgpack.decode(record, type=JobSpec).vo
    except (XosError, msgspec.MsgspecError):
        return ""


def _is_of_another(offer: Offer, vo: str, user: str, origin: str) -> bool:
    """Tell whether a known attempt of the same name is not the offered one's owner's.

    A manager's orders are of the job's user as the log has it: an offer that could not be verified (again) names none.
    """
    return vo not in (offer.vo, "") or origin != offer.origin or (origin == "run" and user != offer.user)


def _same_answer(offer: Offer, state: str, cause: str | None, reason: str) -> Answer:
    if state == AttemptState.REFUSED:
        return Answer(offer.job, offer.attempt, Said(cause or Said.REFUSED), reason)
    return Answer(offer.job, offer.attempt, Said.ENDED if state == AttemptState.ENDED else Said.ACCEPTED)


def attempts_to_fence(live: Iterable[Attempt], contact_age_s: float, lease_s: float = LEASE_S) -> list[tuple[str, int]]:
    """Return which attempts must die because the manager was not heard of for so long: others may start them again."""
    return [a.key for a in live if a.leased] if contact_age_s > lease_s else []


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a restarted daemon does with attempts that did not end: `launch` them (again), keep (`alive`), report as `lost`."""

    launch: tuple[Attempt, ...]
    alive: tuple[Attempt, ...]
    lost: tuple[Attempt, ...]


def plan_recovery(live: Iterable[Attempt], known_to_jobd: Iterable[tuple[str, int]], life: str) -> Recovery:
    """Compare the store with jobd, whose life is `life` and which knows `known_to_jobd` (running or exited, not forgotten).

    `accepted` was never given to any jobd. `starting`, unknown to the same jobd: the daemon died between its note and the
    call, and the caller is gone, so it certainly did not start. Unknown to another life of jobd: nobody can say.
    """
    known = set(known_to_jobd)
    launch: list[Attempt] = []
    alive: list[Attempt] = []
    lost: list[Attempt] = []
    for attempt in live:
        if attempt.key in known:
            alive.append(attempt)
        elif attempt.state == AttemptState.ACCEPTED or attempt.life == life:
            (launch if attempt.origin == "sub" else lost).append(attempt)
        else:
            lost.append(attempt)
    return Recovery(tuple(launch), tuple(alive), tuple(lost))
