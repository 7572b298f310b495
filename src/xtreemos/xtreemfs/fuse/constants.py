"""Numbers of the FUSE protocol 7.31 to 7.45, as the kernel's header <linux/fuse.h> gives them. Plain ints where requests meet them often."""

from __future__ import annotations

from enum import IntEnum, IntFlag

MAJOR = 7
MINOR_MIN, MINOR_MAX = 31, 45  # what we speak; a kernel's newer minor is answered with ours
ROOT_ID = 1

PAGE_BYTES = 4096  # the unit of `max_pages`
READ_BUFFER_BYTES_MIN = 8192  # the kernel refuses to fill less
HEADER_IN_BYTES, HEADER_OUT_BYTES = 40, 16


class Op(IntEnum):
    """Operation codes of requests."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Notify(IntEnum):
    """Codes of messages that the daemon sends unasked."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


NOTIFY_MINOR = {Notify.RESEND: 40, Notify.INC_EPOCH: 44, Notify.PRUNE: 45}  # since which minor; the others are older than MINOR_MIN


class InitFlag(IntFlag):
    """Capabilities that kernel and daemon agree on in INIT."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


# SETATTR `valid`
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
FATTR_ATIME, FATTR_MTIME, FATTR_FH = 1 << 4, 1 << 5, 1 << 6
FATTR_ATIME_NOW, FATTR_MTIME_NOW, FATTR_LOCKOWNER = 1 << 7, 1 << 8, 1 << 9
FATTR_CTIME, FATTR_KILL_SUIDGID = 1 << 10, 1 << 11

# flags of the reply to OPEN, CREATE, TMPFILE and OPENDIR
FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NONSEEKABLE, FOPEN_CACHE_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
FOPEN_STREAM, FOPEN_NOFLUSH, FOPEN_PARALLEL_DIRECT_WRITES, FOPEN_PASSTHROUGH = 1 << 4, 1 << 5, 1 << 6, 1 << 7

# flags of requests
OPEN_KILL_SUIDGID = 1 << 0
RELEASE_FLUSH, RELEASE_FLOCK_UNLOCK = 1 << 0, 1 << 1
GETATTR_FH = 1 << 0
LK_FLOCK = 1 << 0
WRITE_CACHE, WRITE_LOCKOWNER, WRITE_KILL_SUIDGID = 1 << 0, 1 << 1, 1 << 2
READ_LOCKOWNER = 1 << 1
IOCTL_COMPAT, IOCTL_UNRESTRICTED, IOCTL_RETRY, IOCTL_32BIT, IOCTL_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
POLL_SCHEDULE_NOTIFY = 1 << 0
FSYNC_FDATASYNC = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0
ATTR_SUBMOUNT, ATTR_DAX = 1 << 0, 1 << 1
EXPIRE_ONLY = 1 << 0  # of INVAL_ENTRY

EXT_SECCTX_MAX, EXT_GROUPS = 31, 32  # types of request extensions: 0 to 31 are security contexts

UNIQUE_INTERRUPT = 1  # bit of `unique`: this is the interrupt of the request without the bit
UNIQUE_RESEND = 1 << 63  # bit of `unique`: the kernel sends this request again

IOC_CLONE = 0x8004E500
IOC_BACKING_OPEN = 0x4010E501
IOC_BACKING_CLOSE = 0x4004E502
