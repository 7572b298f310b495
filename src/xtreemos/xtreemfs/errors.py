"""Errors of XtreemFS. Those that a program must see as an errno carry its name as `code`, also over the wire."""

from __future__ import annotations

import errno
from typing import ClassVar

from xtreemos.errors import Fault, XosError

WORDS = {
    errno.EACCES: "permission denied", errno.EAGAIN: "try again", errno.EBADF: "the file is not open for that", errno.EBUSY: "in use",
    errno.EDEADLK: "that would wait for ever", errno.EDQUOT: "the quota is used up", errno.EEXIST: "it exists already",
    errno.EFBIG: "the file would be too large", errno.EINVAL: "an argument is not valid", errno.EIO: "the data cannot be read or written",
    errno.EISDIR: "it is a folder", errno.ELOOP: "too many symbolic links", errno.EMLINK: "too many links",
    errno.ENAMETOOLONG: "the name is too long", errno.ENODATA: "there is no such attribute", errno.ENOENT: "no such file or folder",
    errno.ENOSPC: "no space is left", errno.ENOTDIR: "it is no folder", errno.ENOTEMPTY: "the folder is not empty",
    errno.ENXIO: "there is nothing behind", errno.EOPNOTSUPP: "that is not supported", errno.EPERM: "not permitted",
    errno.ERANGE: "it does not fit", errno.EROFS: "it is read-only", errno.ESTALE: "it is gone, or somebody else's by now",
    errno.ETIMEDOUT: "no answer came in time", errno.EXDEV: "that is another volume",
}  # fmt: skip
"""What a user reads where no better line is given."""


class FsError(XosError):
    """A file system operation failed; `code` is the errno's name (EIO, ENOSPC, ...). Nothing was changed."""

    fault: ClassVar[Fault] = "caller"
    code: ClassVar[str] = "EIO"

    def __init__(self, number: int, message: str = "", hint: str = "") -> None:
        super().__init__(message or WORDS.get(number, errno.errorcode[number]), hint)
        self.errno = number
        self.code = errno.errorcode[number]  # type: ignore[misc]  # per instance: the errno's name
        if number in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT):
            self.fault = "environment"  # type: ignore[misc]  # per instance


def errno_of(error: XosError) -> int:
    """Return the errno for a program: from the error's code if that is an errno's name, else what fits its meaning."""
    number = getattr(errno, error.code, None) if error.code.startswith("E") else None
    if isinstance(number, int):
        return number
    return _BY_CODE.get(error.code) or _BY_EXIT_CODE.get(error.exit_code, errno.EIO)


_BY_CODE = {"volume-unknown": errno.ENOENT}
_BY_EXIT_CODE = {69: errno.ETIMEDOUT, 75: errno.EAGAIN, 77: errno.EACCES}


class CapabilityRefused(XosError):
    """A capability or session token is forged, expired, of an older epoch or for something else. Nothing was done; it is audited."""

    fault = "peer"
    code = "capability-refused"
    exit_code = 77


class SignerUnknown(CapabilityRefused):
    """A capability or session token names an MRC that the directory does not know, or not yet. Nothing was done; it is audited."""

    code = "signer-unknown"


class TicketRefused(XosError):
    """A ticket (a user's permission for a node to act for them) is forged, expired, revoked or for another node. Nothing was done."""

    fault = "peer"
    code = "ticket-refused"
    exit_code = 77


class ActorUnknown(XosError):
    """The metadata server knows this actor no more: its ticket has ended or was withdrawn. Nothing was done; show a ticket again."""

    fault = "caller"
    code = "actor-unknown"
    exit_code = 77


class VolumeUnknown(XosError):
    """There is no such volume in this VO; `xos fs volumes` lists them."""

    fault = "caller"
    code = "volume-unknown"
