"""Every error of the FUSE layer. `FuseError` is the only one that a handler is meant to raise."""

from __future__ import annotations

import errno as _errno

from xtreemos.errors import XosError


class FuseError(XosError):
    """A file system operation failed with an errno, which the program that asked is told."""

    fault = "caller"
    code = "fuse-errno"

    def __init__(self, errno: int) -> None:
        super().__init__(_errno.errorcode.get(errno, f"errno {errno}"))
        self.errno = errno


class ProtocolError(XosError):
    """Bytes from the kernel are no request of the FUSE protocol that we speak."""

    fault = "peer"
    code = "fuse-protocol"


class MountFailed(XosError):
    """The file system could not be mounted, unmounted or tuned; the text has the system's own words."""

    fault = "environment"
    code = "fuse-mount"


class NotifyFailed(XosError):
    """The kernel refused a notification (an inode or entry that it does not know is no failure)."""

    fault = "ours"
    code = "fuse-notify"

    def __init__(self, what: str, errno: int) -> None:
        super().__init__(f"{what}: {_errno.errorcode.get(errno, errno)}")
        self.errno = errno


class NotifyQueueFull(XosError):
    """Too many notifications wait for the kernel; nothing was sent. Await the waiting form instead."""

    retry = True
    code = "fuse-notify-full"


class SessionEnded(XosError):
    """The file system is no longer mounted, or its connection to the kernel was aborted."""

    fault = "environment"
    code = "fuse-ended"
