"""What comes into the manager's machine and what it asks its driver to do. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xtreemos.aem.jobspec import JobSpec
from xtreemos.aem.manager.model import Orders, OrdersReply, Query, QueryReply, Report, ReportReply, Row


@dataclass(frozen=True, slots=True)
class Submitted:
    """The submission log holds this at `seq`. `spec` None: it was turned away for `reason`."""

    seq: int
    user: str
    job: str
    record: bytes
    spec: JobSpec | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    """A node reported; `reply` is the driver's handle for the answer."""

    report: Report
    reply: Any


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of orders to `node`; None: nobody knows whether they arrived."""

    node: str
    reply: OrdersReply | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A user's question; who asks was told by the message server, not by the message."""

    user: str
    admin: bool
    query: Query
    reply: Any


@dataclass(frozen=True, slots=True)
class Settle:
    """End of a turn: look at the clock, place what waits, send what is due."""


Event = Submitted | Reported | Answered | Asked | Settle


@dataclass(frozen=True, slots=True)
class SendOrders:
    """Send to the node; feed back `Answered`."""

    node: str
    orders: Orders


@dataclass(frozen=True, slots=True)
class SendSignal:
    """Send orders that hold one signal; answer the user's `reply` with `result` if they arrived, else with an error."""

    node: str
    orders: Orders
    reply: Any
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerNode:
    """Answer a report."""

    reply: Any
    message: ReportReply


@dataclass(frozen=True, slots=True)
class AnswerUser:
    """Answer a question."""

    reply: Any
    message: QueryReply


@dataclass(frozen=True, slots=True)
class StepDown:
    """Another manager has taken over."""

    reason: str


Effect = SendOrders | SendSignal | AnswerNode | AnswerUser | StepDown


@dataclass(frozen=True, slots=True)
class Step:
    """What the driver must do: persist rows and forget jobs (one batch), then the effects in order."""

    rows: tuple[Row, ...] = ()
    forget: tuple[str, ...] = ()
    send: tuple[Effect, ...] = ()
