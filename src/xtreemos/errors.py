"""The base of every error of the project, and how errors cross a process boundary.

An error's text is what a user reads: what happened, then (``hint``) what to do. Class attributes answer what a caller must
decide: whose fault it is, whether the thing certainly did not happen, whether trying again can help.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Fault = Literal["ours", "caller", "peer", "environment"]

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 69
EXIT_TRY_LATER = 75
EXIT_PERMISSION = 77


class XosError(Exception):
    """Base of all our errors. ``str(error)`` is one line for the user; ``hint`` says what to do."""

    fault: ClassVar[Fault] = "ours"
    definite: ClassVar[bool] = True
    retry: ClassVar[bool] = False
    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = EXIT_FAILURE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_wire(self) -> dict[str, Any]:
        """Return the map that an ERROR frame carries."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "fault": self.fault,
            "definite": self.definite,
            "retry": self.retry,
            "exit_code": self.exit_code,
        }

    def line(self) -> str:
        """Return the one line that a command prints."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


class RemoteError(XosError):
    """An error that another process told us about; its attributes are per instance, as the peer said."""

    def __init__(self, wire: dict[str, Any]) -> None:
        super().__init__(str(wire.get("message", "the other side failed without a reason")), str(wire.get("hint", "")))
        self.wire = wire
        self.code = str(wire.get("code", "failed"))  # type: ignore[misc]  # per instance: it is the peer's word
        self.fault = wire.get("fault", "peer")  # type: ignore[misc]
        self.definite = bool(wire.get("definite", False))  # type: ignore[misc]
        self.retry = bool(wire.get("retry", False))  # type: ignore[misc]
        self.exit_code = int(wire.get("exit_code", EXIT_FAILURE))  # type: ignore[misc]


class UsageError(XosError):
    """The caller's words are off; nothing was done."""

    fault = "caller"
    code = "usage"
    exit_code = EXIT_USAGE


class PermissionRefused(XosError):
    """Somebody who has a say refused; the text names who and why. Nothing was done."""

    fault = "caller"
    code = "refused"
    exit_code = EXIT_PERMISSION


class Unreachable(XosError):
    """A service did not answer; it is not known whether the thing happened unless the subclass says so."""

    fault = "environment"
    definite = False
    retry = True
    code = "unreachable"
    exit_code = EXIT_UNREACHABLE


class TryLater(XosError):
    """Not now: no capacity, a node died, a lease is moving. Certainly not done unless the text says otherwise."""

    fault = "environment"
    retry = True
    code = "try-later"
    exit_code = EXIT_TRY_LATER


class NotFound(XosError):
    """The named thing does not exist (or the caller may not know of it)."""

    fault = "caller"
    code = "not-found"


class InternalError(XosError):
    """A bug of ours. Prints a traceback into the log; the user is told to report it."""

    code = "internal"
