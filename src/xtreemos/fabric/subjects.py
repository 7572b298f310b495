"""Every subject, stream and bucket name of the fabric, and what each role may do with them. The only place that joins them.

Inside a VO's account:

| subject | who publishes | who listens |
|---|---|---|
| `node.<node>.<method>` | service | that node |
| `nodes.<method>` | service, nodes; members only the methods of MEMBER_SCATTER | every node |
| `cda.<kind>.<name>.<method>` | node and member, only as itself (`kind` is node, user or core) | service, queue group `cda` |
| `beat.<node>` | that node | service |
| `jobs.submit.<user>.<job>` | that member; captured by stream JOBSUB | service, from the stream |
| `jobs.q.<user>.<method>` | that member | service (the manager) |
| `jobs.ended.<node>.<job>` | that node; captured by stream JOBEND | service, from the stream |
| `_INBOX.<kind>.<id>.>` | who answers a request, once per request | its owner |
| `$JS.API`, `$KV` | service; nodes read bucket `pub` only | the servers |

The name in a subject is enforced by the server out of the JWT (`{{name()}}`, `{{tag(sid)}}`), so a receiver may believe it.
A requester chooses its reply subject unchecked by the server: `connection` therefore answers only into `_INBOX.`.
"""

from __future__ import annotations

import re

from xtreemos.fabric.errors import BadSubject
from xtreemos.fabric.jwt import Permissions

TLS_NAME = "fabric.xtreemos.internal"
PUBLIC_BUCKET = "pub"
VO_BUCKET = "vo"
SUBMIT_STREAM = "JOBSUB"
ENDED_STREAM = "JOBEND"
SUBMIT_FILTER = "jobs.submit.>"
ENDED_FILTER = "jobs.ended.>"
QUESTIONS_FILTER = "jobs.q.>"
BEATS_FILTER = "beat.*"
CDA_FILTER = "cda.*.*.*"
CDA_QUEUE = "cda"
INBOX = "_INBOX."
MEMBER_SCATTER = ("query",)
ROLES = ("admin", "member", "node", "service")

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY = re.compile(r"[A-Za-z0-9_=/-]+(\.[A-Za-z0-9_=/-]+)*")
_PATTERN = re.compile(r"(([A-Za-z0-9_=/-]+|\*)\.)*([A-Za-z0-9_=/-]+|\*|>)")
_KEY_CHARS_MAX = 256


def token(text: str) -> str:
    """Return `text` if it may be one part of a subject; raise BadSubject otherwise."""
    if not isinstance(text, str) or not _TOKEN.fullmatch(text):
        raise BadSubject(f"{str(text)[:64]!r} cannot be part of a subject", "use 1 to 64 of A-Z, a-z, 0-9, _ and -")
    return text


def check_key(text: str) -> str:
    """Return `text` if it may be a key of a bucket; raise BadSubject otherwise."""
    if not isinstance(text, str) or len(text) > _KEY_CHARS_MAX or not _KEY.fullmatch(text):
        raise BadSubject(f"{str(text)[:64]!r} cannot be a key", "use parts of A-Z, a-z, 0-9, _, =, / and -, joined by dots")
    return text


def check_pattern(text: str) -> str:
    """Return `text` if it may be a pattern over keys (`*` is one part, `>` the rest); raise BadSubject otherwise."""
    if not isinstance(text, str) or len(text) > _KEY_CHARS_MAX or not _PATTERN.fullmatch(text):
        raise BadSubject(f"{str(text)[:64]!r} cannot be a pattern over keys", "use a key with * for one part or > for the rest")
    return text


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a subject (or key) matches a pattern, as the servers do."""
    wanted, found = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(found) <= len(wanted):
            return False
        found = found[: len(wanted)]
    return len(wanted) == len(found) and all(w in {"*", f} for w, f in zip(wanted, found, strict=True))


def node(name: str, method: str) -> str:
    """A request to one node."""
    return f"node.{token(name)}.{token(method)}"


def node_filter(name: str) -> str:
    """All requests to one node."""
    return f"node.{token(name)}.>"


def nodes(method: str) -> str:
    """A request to all nodes; use Fabric.gather."""
    return f"nodes.{token(method)}"


NODES_FILTER = "nodes.>"


def cda(kind: str, name: str, method: str) -> str:
    """A request to the CDA by node, user or core node `name`."""
    return f"cda.{token(kind)}.{token(name)}.{token(method)}"


def beat(name: str) -> str:
    """Heartbeats of one node."""
    return f"beat.{token(name)}"


def submit(user: str, job: str) -> str:
    """Submission of a job; append to it."""
    return f"jobs.submit.{token(user)}.{token(job)}"


def question(user: str, method: str) -> str:
    """A request of a user to the manager of its jobs."""
    return f"jobs.q.{token(user)}.{token(method)}"


def ended(name: str, job: str) -> str:
    """End of a job on a node; append to it."""
    return f"jobs.ended.{token(name)}.{token(job)}"


def part(subject: str, index: int) -> str:
    """One part of a subject: `part("jobs.submit.alice.j1", 2)` is alice."""
    return subject.split(".")[index]


def user_inbox(sid: str) -> str:
    """Inbox of a member's session; its JWT carries the tag `sid:<sid>`."""
    return f"{INBOX}user.{token(sid)}"


def node_inbox(name: str) -> str:
    """Inbox of a node."""
    return f"{INBOX}node.{token(name)}"


def service_inbox(name: str) -> str:
    """Inbox of a core node's services."""
    return f"{INBOX}core.{token(name)}"


def kv_stream(bucket: str) -> str:
    """Stream behind a bucket."""
    return f"KV_{token(bucket)}"


def kv_subject(bucket: str, key: str) -> str:
    """Subject of a key (or a pattern) of a bucket."""
    return f"$KV.{token(bucket)}.{key}"


def _member() -> Permissions:
    return Permissions(
        pub_allow=("jobs.submit.{{name()}}.>", "jobs.q.{{name()}}.>", "cda.user.{{name()}}.>", *(nodes(m) for m in MEMBER_SCATTER)),
        sub_allow=("_INBOX.user.{{tag(sid)}}.>",),
        pub_deny=("$JS.>", "$KV.>", "$SYS.>"),
        sub_deny=("$JS.>", "$KV.>", "$SYS.>"),
    )


def _node() -> Permissions:
    stream = kv_stream(PUBLIC_BUCKET)
    return Permissions(
        pub_allow=(
            "beat.{{name()}}",
            "jobs.ended.{{name()}}.>",
            "cda.node.{{name()}}.>",
            NODES_FILTER,
            f"$JS.API.STREAM.INFO.{stream}",
            f"$JS.API.STREAM.MSG.GET.{stream}",
        ),
        sub_allow=("_INBOX.node.{{name()}}.>", "node.{{name()}}.>", NODES_FILTER, f"{PUBLISHED}.{PUBLIC_BUCKET}.>"),
        reply_count_max=1,
    )


def _service() -> Permissions:
    return Permissions(pub_allow=(">",), sub_allow=(">",))


PUBLISHED = "kv"
"""The servers repeat each change of a bucket on `kv.<bucket>.<key>`: readers without rights to make consumers follow these."""


def published(bucket: str, key: str) -> str:
    """Where the servers repeat the changes of a key (or pattern) of a bucket."""
    return f"{PUBLISHED}.{token(bucket)}.{key}"


def permissions(role: str) -> Permissions:
    """Template of a role. Admins act through the CDA, so on the fabric they are members."""
    return {"admin": _member, "member": _member, "node": _node, "service": _service}[role]()
