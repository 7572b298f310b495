"""The ioctls of an open FUSE device. OSError as the kernel says."""

from __future__ import annotations

import fcntl
import os
import struct

from xtreemos.xtreemfs.fuse import constants as c

BACKING_MAP = struct.Struct("=iI8x")  # descriptor, flags


def backing_open(device_fd: int, fd: int) -> int:
    """Register open file `fd` for passthrough and return its id."""
    return int(fcntl.ioctl(device_fd, c.IOC_BACKING_OPEN, bytearray(BACKING_MAP.pack(fd, 0)), True))  # True: gives the return value


def backing_close(device_fd: int, backing_id: int) -> None:
    """Forget a registered file."""
    fcntl.ioctl(device_fd, c.IOC_BACKING_CLOSE, struct.pack("=I", backing_id))


def clone(fd: int) -> int:
    """Return a new descriptor of the FUSE connection behind `fd`. It must be answered on the descriptor that a request was read from."""
    new = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(new, c.IOC_CLONE, struct.pack("=I", fd))
    except OSError:
        os.close(new)
        raise
    return new
