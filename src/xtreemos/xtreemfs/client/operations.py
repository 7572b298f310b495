"""All operations of the mount: what the FUSE layer calls. The groups are mixed together here; ioctl is refused, poll left to the kernel."""

from __future__ import annotations

import errno
from typing import NoReturn

from xtreemos.xtreemfs.client.filelocks import LockOps
from xtreemos.xtreemfs.client.listing import ListingOps
from xtreemos.xtreemfs.fuse import model as m
from xtreemos.xtreemfs.fuse.constants import NOTIFY_MINOR, Notify
from xtreemos.xtreemfs.fuse.driver import Session as Kernel
from xtreemos.xtreemfs.fuse.errors import FuseError


class Operations(LockOps, ListingOps):
    """The handlers of one mount."""

    def init(self, session: Kernel) -> None:
        """See `fuse.handlers`."""
        self.client.kernel = session
        self.client.has_epochs = session.negotiated.minor >= NOTIFY_MINOR[Notify.INC_EPOCH]

    def destroy(self) -> None:
        """See `fuse.handlers`."""
        self.client.kernel = None

    def ioctl(self, q: m.Ioctl) -> NoReturn:  # noqa: ARG002  # the interface
        """See `fuse.handlers`: there are none."""
        raise FuseError(errno.ENOTTY)
