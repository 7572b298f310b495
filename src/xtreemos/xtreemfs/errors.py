"""Errors of XtreemFS. Those that a program must see as an errno carry its name as `code`, also over the wire."""

from __future__ import annotations

import errno
import os
from typing import ClassVar

from xtreemos.errors import Fault, XosError


class FsError(XosError):
    """A file system operation failed; `code` is the errno's name. Definite: nothing was changed."""

    fault: ClassVar[Fault] = "caller"

    def __init__(self, number: int, message: str = "", hint: str = "") -> None:
        super().__init__(message or os.strerror(number).lower(), hint)
        self.errno = number
        self.code = errno.errorcode[number]  # type: ignore[misc]  # per instance: the errno's name
        if number in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT):
            self.fault = "environment"  # type: ignore[misc]


def errno_of(error: XosError) -> int:
    """Return the errno for a program: from the error's code if that is an errno's name, else what fits its meaning."""
    number = getattr(errno, error.code, None) if error.code.startswith("E") else None
    if isinstance(number, int):
        return number
    return _BY_EXIT_CODE.get(error.exit_code, errno.EIO)


_BY_EXIT_CODE = {69: errno.ETIMEDOUT, 75: errno.EAGAIN, 77: errno.EACCES}


class CapabilityRefused(XosError):
    """A capability or session token is forged, expired, of an older epoch or for something else. Nothing was done; it is audited."""

    fault = "peer"
    code = "EACCES"
    exit_code = 77


class TicketRefused(XosError):
    """A ticket (a user's permission for a node to act for them) is forged, expired, revoked or for another node. Nothing was done."""

    fault = "peer"
    code = "EACCES"
    exit_code = 77


class VolumeUnknown(XosError):
    """There is no such volume in this VO; `xos fs volumes` lists them."""

    fault = "caller"
    code = "ENOENT"
