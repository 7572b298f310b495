"""Errors of the MRC that are no errno of a program: what keeps it from starting or from going on."""

from __future__ import annotations

from xtreemos.errors import XosError


class LogDamaged(XosError):
    """The MRC's log is damaged in the middle: commands that were acknowledged cannot be read. It does not start.

    The line names file, byte and command. `python -m xtreemos.xtreemfs.mrc.fsck FOLDER --repair` goes on without what came after.
    """

    fault = "environment"
    code = "mrc-log-damaged"


class StoreBroken(XosError):
    """The MRC's disk failed while writing, or its store does not fit its log. It stops; nothing acknowledged is lost by that."""

    fault = "environment"
    code = "mrc-store-broken"


class FolderInUse(XosError):
    """Another process has this MRC's folder open. Stop it first."""

    fault = "caller"
    code = "mrc-folder-in-use"


class ChangeUnknown(XosError):
    """The answer to this change was lost and is not kept any more: the client's session has ended in between. It may have been done.

    It is not done a second time; the program is told EIO. Look what is there before doing it again.
    """

    fault = "environment"
    definite = False
    code = "fs-change-unknown"


class SessionOver(XosError):
    """The client's session has expired or was never opened on this connection: it must open it again. Nothing was done."""

    fault = "caller"
    retry = True
    code = "fs-session-over"
    exit_code = 75
