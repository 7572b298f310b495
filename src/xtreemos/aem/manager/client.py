"""What an agent asks of the VO's job manager: submit, list, wait, kill. Waits are answered when something happened, never polled.

A submission is acknowledged when the VO's replicated log has it, whether or not a manager lives at that moment. A repeated
publication after an unknown outcome carries the same id and counts once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Protocol

from xtreemos.aem.manager.model import LIST_ROWS_MAX, NoManager, Query, QueryReply, decode, encode
from xtreemos.aem.manager.signed import peek_spec
from xtreemos.errors import RemoteError
from xtreemos.fabric import subjects
from xtreemos.fabric.errors import Unreachable

SUBMIT_S_MAX = 20.0
ASK_S_MAX = 10.0
ASK_ONCE_S = 3.0
WAIT_S = 15.0
RETRY_S = 0.25
WAIT_JOBS_AT_ONCE = 1000  # the answer has a row for each and must fit one message


class ClientPort(Protocol):
    """What a member of the VO may do on the fabric."""

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Ask; Unreachable if there is no answer."""

    async def append(self, subject: str, data: bytes, *, msg_id: str | None = None) -> int:
        """Add to a stream; return the sequence when it is durable."""


class SubmitUnknown(Unreachable):
    """The fabric did not answer: it is not known whether the job was taken. `xos ps` shows it if it was."""

    code = "submit-unknown"


class JobsClient:
    """One user's view of the VO's detached jobs; keep it for the session: it sees at once what it submitted itself."""

    def __init__(self, port: ClientPort, user: str, *, clock_s: Callable[[], float]) -> None:
        """`clock_s`: monotonic seconds."""
        self._port = port
        self._user = user
        self._clock_s = clock_s
        self._seen_seq = 0

    async def submit(self, record: bytes) -> str:
        """Publish a signed submission; return the job id when it is durable.

        Raises:
            SubmitUnknown: not acknowledged within SUBMIT_S_MAX; `definite` if it certainly was not taken.
            BadSubmission, BadSpec: the record is none. Definite.
        """
        job = peek_spec(record).job
        subject = subjects.submit(self._user, job)
        deadline_s = self._clock_s() + SUBMIT_S_MAX
        certainly_not = True
        while True:
            try:
                seq = await self._port.append(subject, record, msg_id=job)
            except Unreachable as error:
                certainly_not = certainly_not and error.definite
                if self._clock_s() >= deadline_s:
                    raise SubmitUnknown(
                        f"job {job} was not acknowledged", "see `xos ps` before you submit again", definite=certainly_not
                    ) from error
                await asyncio.sleep(RETRY_S)
            else:
                self._seen_seq = max(self._seen_seq, seq)
                return job

    async def list_jobs(self, *, everybody: bool = False, ended: bool = False) -> list[dict[str, Any]]:
        """Return views (see Machine.view) of one's own jobs, oldest first; `everybody` works for administrators of the VO."""
        jobs: list[dict[str, Any]] = []
        more = True
        while more:
            behind = {"after": jobs[-1]["seq"], "after_job": jobs[-1]["job"]} if jobs else {}
            page = await self._ask("list", {"all": everybody, "ended": ended, **behind})
            jobs += page["jobs"]
            more = page["more"]
        return jobs

    async def status(self, jobs: Iterable[str]) -> list[dict[str, Any]]:
        """Return the views of named jobs; JobUnknown (as RemoteError) if one is not known or not yours."""
        result = await self._ask("status", {"jobs": list(jobs)})
        return list(result["jobs"])

    async def known(self, jobs: Iterable[str]) -> list[dict[str, Any]]:
        """Return the views of those named jobs that are detached ones of yours; the others may be foreground jobs, or no jobs."""
        names, views = list(jobs), []
        for at in range(0, len(names), LIST_ROWS_MAX):
            result = await self._ask("status", {"jobs": names[at : at + LIST_ROWS_MAX], "known": True})
            views += list(result["jobs"])
        return views

    async def kill(self, job: str, signal: int) -> dict[str, Any]:
        """Send a signal; a job that did not start yet is called off. Returns its view."""
        return await self._ask("kill", {"job": job, "signal": signal})

    async def wait_jobs(self, jobs: Iterable[str], *, every: bool = False) -> AsyncIterator[dict[str, Any]]:
        """Yield the view of each job as it ends, each once; over changes of the manager. Cancelling leaves nothing behind.

        With `every` the manager answers less often: for who wants to hear of the last end only.
        """
        left = dict.fromkeys(jobs)
        while left:
            asked = list(left)[:WAIT_JOBS_AT_ONCE]
            for view in await self._wait_some(asked, every=every):
                if left.pop(view["job"], 0) is None:
                    yield view

    async def _wait_some(self, jobs: list[str], *, every: bool) -> list[dict[str, Any]]:
        """One long question: answered when at least one (each, with `every`) ended, or after WAIT_S."""
        try:
            result = await self._ask("wait", {"jobs": jobs, "wait_s": WAIT_S, "every": every}, once_s=WAIT_S + ASK_ONCE_S)
        except NoManager:
            return []  # whoever waits, waits: the caller's deadline is his own
        return list(result["ended"])

    async def _ask(self, method: str, params: dict[str, Any], once_s: float = ASK_ONCE_S) -> dict[str, Any]:
        data = encode(Query(method=method, params=params, after_seq=self._seen_seq))
        deadline_s = self._clock_s() + max(ASK_S_MAX, once_s)
        while True:
            try:
                raw = await self._port.request(subjects.question(self._user, method), data, once_s)
            except Unreachable as error:
                if self._clock_s() >= deadline_s:
                    raise NoManager("the VO's job manager does not answer", "submitted jobs are safe; try again soon") from error
                await asyncio.sleep(RETRY_S)
                continue
            reply = decode(raw, QueryReply)
            if reply.error is not None:
                raise RemoteError(reply.error)
            return dict(reply.result)
