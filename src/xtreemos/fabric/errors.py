"""Every error of the fabric: keys and tokens, servers, buckets and leases."""

from __future__ import annotations

from typing import ClassVar

from xtreemos import errors
from xtreemos.errors import Fault, XosError


class Unreachable(errors.Unreachable):
    """No answer from the fabric. `definite` tells whether the thing certainly did not happen."""

    def __init__(
        self,
        message: str,
        hint: str = "check `xos status`; it goes on by itself when the fabric is back",
        *,
        definite: bool = False,
    ) -> None:
        super().__init__(message, hint)
        self.definite = definite  # type: ignore[misc]  # per instance: the caller must know


class NoResponders(Unreachable):
    """Nobody listens to the subject. Certainly not done."""

    code = "no-responders"

    def __init__(self, subject: str) -> None:
        super().__init__(
            f"nobody answers to {subject}", "the service is not running yet or has just died; try again", definite=True
        )


class FabricClosed(XosError):
    """The connection was closed by its owner. Nothing was done."""

    code = "closed"


class TooLarge(XosError):
    """A message is larger than the fabric carries. Nothing was done."""

    fault = "caller"
    code = "too-large"


class BadSubject(XosError):
    """A subject, key or pattern has characters or an empty part that the fabric does not take. Nothing was done."""

    fault = "caller"
    code = "bad-subject"


class BadKey(XosError):
    """A NATS key or seed is malformed, of the wrong kind, or a signature by it does not hold."""

    fault = "peer"
    code = "bad-key"


class BadNonce(BadKey):
    """A server asked us to sign something that is not a nonce; nothing was signed."""

    code = "bad-nonce"


class BadToken(XosError):
    """A NATS JWT is refused. `reason` is a short word for the audit record."""

    fault = "peer"
    code = "bad-token"
    exit_code = errors.EXIT_PERMISSION

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message, "log in again; if it stays, ask the administrator of the VO")
        self.reason = reason


class UnsafeServer(XosError):
    """A NATS server runs with settings under which acknowledged data may be lost or strangers may enter."""

    fault = "environment"
    code = "unsafe-server"


class ServerFailed(XosError):
    """The NATS server did not start or died. Its log file says more."""

    fault = "environment"
    code = "server-failed"


class ApiError(XosError):
    """JetStream refused a request; nothing was done. `err_code` is the server's own number."""

    code = "jetstream"

    def __init__(self, message: str, *, err_code: int, status: int) -> None:
        super().__init__(f"the fabric refused: {message}", "")
        self.err_code = err_code
        self.status = status


class RevisionMismatch(XosError):
    """Somebody else changed it since it was read; nothing was written. Read again and decide again."""

    fault: ClassVar[Fault] = "peer"
    retry = True
    code = "revision-mismatch"

    def __init__(self, key: str, expected: int) -> None:
        super().__init__(f"{key!r} is no longer at revision {expected}", "read it again and retry")
        self.key = key
        self.expected = expected


class KeyExists(XosError):
    """The key has a value already; nothing was written."""

    fault = "caller"
    code = "key-exists"

    def __init__(self, key: str) -> None:
        super().__init__(f"{key!r} exists already", "")
        self.key = key


class UnsafeBucket(XosError):
    """A bucket or stream was made with settings we do not trust (stale reads, too few replicas)."""

    fault = "environment"
    code = "unsafe-bucket"


class GapInStream(XosError):
    """A part of a stream that was asked for is no longer there; rebuild from a snapshot. `first` is the oldest there is."""

    fault = "environment"
    code = "gap"

    def __init__(self, stream: str, wanted: int, first: int) -> None:
        super().__init__(f"stream {stream} begins at {first}, but {wanted} was wanted", "rebuild from a snapshot")
        self.stream = stream
        self.wanted = wanted
        self.first = first


class LeaseTaken(XosError):
    """Another holder has the lease. Nothing was done."""

    fault = "peer"
    retry = True
    code = "lease-taken"
