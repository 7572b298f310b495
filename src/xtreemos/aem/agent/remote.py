"""One job on a node, as the agent holds it: streams that resume by offset, and what to do when the node is gone.

The agent is the job's manager: it alone decides that a node is lost, and starts the program again (`--retry`) only after the node
must have fenced the first attempt itself. A broken connection is not a lost node: the streams go on where they stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from xtreemos.aem.agent.ports import Continued, Ended, Message, Output, OutputEnded, RunEvent, Stopped
from xtreemos.aem.jobspec import JobSpec, to_wire
from xtreemos.errors import EXIT_TRY_LATER, RemoteError, TryLater, Unreachable, XosError
from xtreemos.fabric.rpc import ClientCall
from xtreemos.foundation.frames import CHUNK_BYTES, WINDOW_BYTES, Frame, Kind
from xtreemos.foundation.jobd.model import REASON_JOBD, REASON_NOT_EXECUTABLE, REASON_NOT_FOUND
from xtreemos.foundation.window import ReceiveWindow, SendWindow

log = logging.getLogger(__name__)

LOST_S = 15.0  # without any contact for so long a node counts as lost; must exceed the node's own FENCE_S
RECONNECT_EVERY_S = 0.5
SAY_AFTER_S = 1.5  # the user reads what is going on after so long without contact
REPLAY_BYTES_MAX = WINDOW_BYTES  # standard input kept for another attempt: what fits one window
EVENTS_MAX = 64
SIGNALS_MAX = 64
ANSWER_S = 5.0
STDIN = 0
ACK_BYTES = WINDOW_BYTES // 8
ACK_DELAY_S = 0.01
"""A terminal consumes so much, or so long passes, before the node is told: an answer to each echo costs as much as the echo. Short,
for what is not acknowledged when an agent dies is written to its terminal twice."""
SAID_ALREADY = frozenset({REASON_NOT_FOUND, REASON_NOT_EXECUTABLE})  # by the far side on standard error, as a shell would
ENDING_SIGNALS = frozenset({1, 2, 3, 6, 9, 13, 14, 15})

PASSING = frozenset({"connection-lost", "no-connection"})
"""A node that says this has lost jobd for a moment, one of the two is just starting anew: the streams go on by their offsets."""


class NodeDied(TryLater):
    """The node that ran the program is gone; whether the program ended there is not known."""

    code = "node-died"
    definite = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an attempt runs: the open call that started it."""

    node: str
    call: ClientCall
    attempt: int


Place = Callable[[JobSpec, int, frozenset[str], Any], Awaitable[Placement]]
Reattach = Callable[[str, dict[str, Any]], Awaitable[ClientCall]]


class RemoteRun:
    """A job of this session. `read` gives its events; the other methods act on it (see aem/agent/ports.py, Run).

    Without `placement` it first finds a node: what happens meanwhile are events too, and a signal then ends it unstarted.
    """

    def __init__(
        self,
        spec: JobSpec,
        placement: Placement | None,
        *,
        place: Place,
        reattach: Reattach,
        retryable: bool,
        joined: bool = False,
        direct: bool = False,
        times: bool = False,
    ) -> None:
        """`joined`: attached to a job that ran before; its streams go on where they are, not at 0. `times`: say how long it ran."""
        self.spec = spec
        self.token = spec.job
        self.wants_tty = spec.tty is not None
        self._placement = placement
        self._placed = asyncio.Event()
        if placement is not None and not joined:
            self._placed.set()
        self._place = place
        self._reattach = reattach
        self._times = times
        self._began = time.monotonic()
        self._retryable = retryable and spec.retry > 0
        self._events: asyncio.Queue[RunEvent] = asyncio.Queue(EVENTS_MAX)
        self._winsize = spec.tty
        self._ack_timer: asyncio.TimerHandle | None = None
        self._stale = {1: 0, 2: 0}  # bytes of a lost attempt that are not written yet: not to be acknowledged to the next
        self._reset_streams()
        self._joining = {0, 1, 2} if joined else set()
        self._replay: list[bytes] = []
        self._replay_bytes = 0
        self._stdin_end_wanted = False
        self._stdin_closed = asyncio.Event()
        if direct:
            self._stdin_closed.set()
        self._broken: set[int] = set()
        self._killed_by: int | None = None
        self._away = False
        self._told_away = False
        self._signals: deque[tuple[int, int]] = deque(maxlen=SIGNALS_MAX)  # (number, signal) that jobd may not have yet
        self._signal_count = 0
        self._first: Frame | None = None
        self._task = asyncio.create_task(self._follow(), name=f"follow {spec.job}")

    @property
    def placement(self) -> Placement:
        """Where it runs; only after it was placed."""
        assert self._placement is not None, "not placed yet"
        return self._placement

    @property
    def node(self) -> str:
        """The node's name, or "" while it is not placed."""
        return self._placement.node if self._placement else ""

    def on_done(self, hook: Callable[[], Any]) -> None:
        """Call `hook` when the job has ended here or was detached."""
        self._task.add_done_callback(lambda _task: hook())

    def _reset_streams(self) -> None:
        self._stdin = SendWindow()
        self._outputs = {1: ReceiveWindow(), 2: ReceiveWindow()}
        self._consumed = {1: 0, 2: 0}
        self._told = {1: 0, 2: 0}
        self._room = asyncio.Event()
        self._room.set()

    # -- what the ghost side calls ---------------------------------------------------------------------------------------

    async def read(self) -> RunEvent:
        """Return the next event."""
        return await self._events.get()

    def consumed(self, stream: int, count: int) -> None:
        """`count` bytes of `stream` are written where they belong: now the node may drop them."""
        stale = min(count, self._stale[stream])
        self._stale[stream] -= stale
        self._consumed[stream] += count - stale
        waiting = self._consumed[stream] - self._told[stream]
        if self.spec.tty is None or waiting >= ACK_BYTES or self._outputs[stream].end is not None:
            self._acknowledge(stream)
        elif self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(ACK_DELAY_S, self._acknowledge_late)

    def _acknowledge(self, stream: int) -> None:
        """Tell the node what was consumed."""
        if self._consumed[stream] > self._told[stream]:
            self._told[stream] = self._consumed[stream]
            self.placement.call.send_ack(stream, self._consumed[stream])

    def _acknowledge_late(self) -> None:
        if self._placement is not None and not self._task.done():
            for stream, offset in self._take_acks():
                self.placement.call.send_ack(stream, offset)

    def _take_acks(self) -> list[tuple[int, int]]:
        """Return what the timer would tell, as told: the next typed byte takes it along, and the far side wakes once for both."""
        if self._ack_timer is None:
            return []
        self._ack_timer.cancel()
        self._ack_timer = None
        due = [(stream, offset) for stream, offset in self._consumed.items() if offset > self._told[stream]]
        self._told.update(due)
        return due

    async def write_stdin(self, data: bytes) -> None:
        """Give bytes to the program; waits while the window is full. Bytes for a closed stdin are dropped, as by a pipe's writer that ignores SIGPIPE."""
        await self._placed.wait()
        self._remember(data)
        view = memoryview(data)
        while view and not self._stdin_closed.is_set():
            while self._stdin.room <= 0 and not self._stdin_closed.is_set():
                self._room.clear()
                await self._room.wait()
            piece = bytes(view[: min(len(view), CHUNK_BYTES, max(self._stdin.room, 0))])
            if not piece:
                continue
            offset = self._stdin.push(piece)
            self.placement.call.send_data(STDIN, offset, piece, self._take_acks())
            view = view[len(piece) :]
        await self.placement.call.peer.drain()

    async def close_stdin(self) -> None:
        """Standard input ends here."""
        self._stdin_end_wanted = True
        self._stdin.ended = True
        if self._placement is None:
            return  # told when it is placed
        self.placement.call.send_eof(STDIN, self._stdin.sent)

    async def stdin_closed(self) -> None:
        """Wait until the program no longer reads its standard input."""
        await self._stdin_closed.wait()

    async def signal(self, number: int) -> None:
        """Send a signal to the whole process tree of the job; before it runs, a signal that ends programs calls it off."""
        if self._placement is None:
            if number in ENDING_SIGNALS:
                self._killed_by = number
                self._task.cancel()
            return
        if self._told_away and number in ENDING_SIGNALS:
            # The user does not want to wait for a node that does not answer; its own rule ends a job that nobody comes back to.
            text = f"xos: gave up waiting for node {self.node}; job {self.spec.job} may still run there until the node notices"
            self._killed_by = number
            self._task.cancel()
            self._events.put_nowait(Message(text))
            self._events.put_nowait(Ended({"code": None, "signal": number, "core": False}))
            return
        self._signal_count += 1
        self._signals.append((self._signal_count, number))
        if not self._away:
            self.placement.call.send_event({"type": "signal", "signal": number, "number": self._signal_count})

    def _send_signals_again(self, taken: int) -> None:
        """Send what was on its way when the line broke; jobd has those up to `taken`."""
        while self._signals and self._signals[0][0] <= taken:
            self._signals.popleft()
        for count, number in self._signals:
            self.placement.call.send_event({"type": "signal", "signal": number, "number": count})

    async def winsize(self, rows: int, cols: int) -> None:
        """The terminal has a new size."""
        if self._winsize is not None:
            self._winsize = type(self._winsize)(rows, cols)
        if self._placement is not None:
            self.placement.call.send_event({"type": "winsize", "rows": rows, "cols": cols})

    async def renice(self, nice: int) -> None:
        """The program runs at another niceness from now on."""
        if self._placement is not None:
            self.placement.call.send_event({"type": "renice", "nice": nice})

    async def output_broken(self, stream: int) -> None:
        """Nobody reads this output any more: the program gets SIGPIPE when it writes."""
        self._broken.add(stream)
        if self._placement is not None:
            self.placement.call.send_event({"type": "broken", "stream": stream})

    def detach(self) -> None:
        """Leave the job running and forget it here."""
        self._task.cancel()
        if self._placement is not None:
            self.placement.call.close()

    # -- following the node ----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        try:
            if self._placement is None:
                self._placement = await self._place(self.spec, 1, frozenset(), self._say)
                self._on_placed()
            while True:
                try:
                    await self._follow_call()
                    return
                except RemoteError as error:
                    if error.code == "taken-over":
                        await self._end_with(EXIT_TRY_LATER, f"xos: job {self.spec.job} was attached from elsewhere")
                        return
                    if error.code in PASSING:
                        if not await self._recover():
                            return
                        continue
                    await self._end_with(error.exit_code, f"xos: {error.line()}")
                    return
                except Unreachable:
                    if not await self._recover():
                        return
        except XosError as error:
            await self._end_with(error.exit_code, f"xos: {error.line()}")
        except asyncio.CancelledError:
            if self._killed_by is None or self._away:
                raise
            self._events.put_nowait(Ended({"code": None, "signal": self._killed_by, "core": False}))
        except Exception:
            log.exception("following %s failed", self.spec.job)
            await self._end_with(1, f"xos: job {self.spec.job}: the agent failed inside; see its log")

    def _on_placed(self) -> None:
        """Tell the node what was said while it was looked for."""
        self._placed.set()
        call = self.placement.call
        if self._stdin.ended:
            call.send_eof(STDIN, self._stdin.sent)
        for stream in self._broken:
            call.send_event({"type": "broken", "stream": stream})
        if self._winsize is not None and self._winsize != self.spec.tty:
            call.send_event({"type": "winsize", "rows": self._winsize.rows, "cols": self._winsize.cols})

    async def _follow_call(self) -> None:
        call = self.placement.call
        while True:
            first, self._first = self._first, None
            if await self._on_frame(first or await call.receive()):
                return

    async def _on_frame(self, frame: Frame) -> bool:
        if frame.kind in (Kind.DATA, Kind.EOF) and frame.stream in self._joining:
            self._joining.discard(frame.stream)
            self._outputs[frame.stream].offset = self._consumed[frame.stream] = self._told[frame.stream] = frame.offset
        if frame.kind is Kind.DATA:
            window = self._outputs[frame.stream]
            fresh = window.accept(frame.offset, frame.body)
            if fresh:
                await self._events.put(Output(frame.stream, fresh))
        elif frame.kind is Kind.ACK:
            self._stdin.on_ack(frame.offset)
            if self._stdin.room > 0:
                self._room.set()
        elif frame.kind is Kind.EOF:
            self._outputs[frame.stream].on_eof(frame.offset)
            self._acknowledge(frame.stream)
            await self._events.put(OutputEnded(frame.stream))
        elif frame.kind is Kind.EVENT:
            await self._on_event(frame.body)
        elif frame.kind is Kind.RESULT:
            return await self._on_result(frame.body)
        return False

    async def _on_event(self, body: dict[str, Any]) -> None:
        kind = body.get("type")
        if kind == "state" and body.get("state") == "stopped":
            await self._events.put(Stopped(int(body.get("signal") or 19)))
        elif kind == "state" and body.get("state") == "running":
            await self._events.put(Continued())
        elif kind == "attached":
            accepted, taken = int(body.get("stdin", 0)), int(body.get("signals", 0))
            self._signal_count = max(self._signal_count, taken)
            if STDIN in self._joining:
                self._joining.discard(STDIN)
                self._stdin.acked = self._stdin.sent = accepted
                self._on_placed()
            self._resend(accepted)
        elif kind == "stdin-closed":
            self._stdin_closed.set()
            self._room.set()
        elif kind == "message":
            await self._events.put(Message(f"xos: {body.get('text', '')}"))

    async def _on_result(self, body: dict[str, Any]) -> bool:
        record = body.get("exit") or {}
        if record.get("reason") == REASON_JOBD:
            if await self._start_again(f"node {self.placement.node} lost the job ({REASON_JOBD})"):
                await self._follow_call()
            return True
        if record.get("reason") and record["reason"] not in SAID_ALREADY:
            await self._events.put(Message(f"xos: job {self.spec.job}: {record['reason']}"))
        if self._times:
            for line in times_lines(time.monotonic() - self._began, record):
                await self._events.put(Message(line))
        await self._events.put(Ended(record))
        return True

    def _resend(self, accepted: int) -> None:
        self._stdin.on_ack(accepted)
        call = self.placement.call
        for offset, data in self._stdin.resend():
            call.send_data(STDIN, offset, data)
        if self._stdin.ended:
            call.send_eof(STDIN, self._stdin.sent)
        if self._stdin.room > 0:
            self._room.set()

    # -- a node that does not answer -------------------------------------------------------------------------------------

    async def _recover(self) -> bool:
        """Find the job again on its node, or start it elsewhere, or end it; return whether to go on following."""
        since = time.monotonic()
        self._away = True
        said = False
        try:
            while time.monotonic() - since < LOST_S:
                try:
                    await self._attach_again()
                except RemoteError as error:
                    if error.code in PASSING:
                        await asyncio.sleep(RECONNECT_EVERY_S)
                        continue
                    if error.code != "job-not-here":
                        raise
                    break  # the node answers and knows the job no more: it died and came back, or fenced it
                except (Unreachable, TryLater):
                    if not said and time.monotonic() - since > SAY_AFTER_S:
                        said = self._told_away = True
                        await self._events.put(
                            Message(f"xos: no contact with node {self.placement.node}; waiting up to {LOST_S:g} s")
                        )
                    await asyncio.sleep(RECONNECT_EVERY_S)
                else:
                    if said:
                        await self._events.put(Message(f"xos: node {self.placement.node} is back; the program went on"))
                    return True
        finally:
            self._away = self._told_away = False
        return await self._start_again(f"node {self.placement.node} died")

    async def _attach_again(self) -> None:
        """Open the streams again; only the node's first answer counts as contact, a connection alone may yet be refused."""
        offsets = {str(stream): window.offset for stream, window in self._outputs.items()}
        params = {"job": self.spec.job, "attempt": self.placement.attempt, "offsets": offsets, "steal": True}
        call = await self._reattach(self.placement.node, params)
        try:
            async with asyncio.timeout(ANSWER_S):
                first = await call.receive()
        except TimeoutError:
            call.close()
            raise Unreachable(f"node {self.placement.node} does not answer") from None
        self._placement = replace(self.placement, call=call)
        for stream in self._broken:
            call.send_event({"type": "broken", "stream": stream})
        if self._winsize is not None:
            call.send_event({"type": "winsize", "rows": self._winsize.rows, "cols": self._winsize.cols})
        self._send_signals_again(int(first.body.get("signals", 0)) if isinstance(first.body, dict) else 0)
        self._first = first

    async def _start_again(self, why: str) -> bool:
        attempt = self.placement.attempt + 1
        if attempt > self.spec.retry + 1:
            hint = "use --retry to have it started again elsewhere" if self.spec.retry == 0 else f"that was attempt {attempt - 1}"
            await self._end_with(EXIT_TRY_LATER, f"xos: {why} while it ran job {self.spec.job}; {hint}")
            return False
        if not self._retryable or self._replay_bytes > REPLAY_BYTES_MAX:
            await self._end_with(EXIT_TRY_LATER, f"xos: {why}; the program cannot start again: its standard input is used up")
            return False
        await self._events.put(Message(f"xos: {why}; starting {self.spec.argv[0]} again elsewhere (attempt {attempt})"))
        avoid = frozenset({self.placement.node})
        self._placement = await self._place(self.spec, attempt, avoid, self._say)
        await self._events.put(Message(f"xos: started again on node {self.placement.node}"))
        for stream, window in self._outputs.items():
            self._stale[stream] += window.offset - self._consumed[stream]
        self._reset_streams()
        self._signals.clear()
        self._signal_count = 0
        for stream in self._broken:
            self.placement.call.send_event({"type": "broken", "stream": stream})
        for data in self._replay:
            offset = self._stdin.push(data)
            self.placement.call.send_data(STDIN, offset, data)
        if self._stdin_end_wanted or self._stdin_closed.is_set():  # closed: nothing was read for it since
            self._stdin.ended = True
            self.placement.call.send_eof(STDIN, self._stdin.sent)
        return True

    def _say(self, text: str) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._events.put_nowait(Message(text))

    def _remember(self, data: bytes) -> None:
        if not self._retryable or self._replay_bytes > REPLAY_BYTES_MAX:
            return
        self._replay_bytes += len(data)
        if self._replay_bytes > REPLAY_BYTES_MAX:
            self._replay.clear()
        else:
            self._replay.append(data)

    async def _end_with(self, code: int, text: str) -> None:
        self._stdin_closed.set()
        self._placed.set()
        self._room.set()
        await self._events.put(Message(text))
        await self._events.put(Ended({"code": code, "signal": None, "core": False}))


def times_lines(real_s: float, record: dict[str, Any]) -> list[str]:
    """Return what `time -p` would print had the program run here: CPU times are the program's, real time is the user's."""
    rows = {"real": real_s, "user": record.get("user_s"), "sys": record.get("system_s")}
    return [f"{name} {float(value or 0):.2f}" for name, value in rows.items()]


def start_params(spec: JobSpec, attempt: int) -> dict[str, Any]:
    """Return the params of the call that starts `spec` on a node."""
    return {"spec": to_wire(spec), "attempt": attempt}
