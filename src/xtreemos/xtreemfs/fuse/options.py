"""What a mount may be told to be, and what the kernel and we agreed on."""

from __future__ import annotations

from dataclasses import dataclass

from xtreemos.xtreemfs.fuse.constants import PAGE_BYTES, InitFlag


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What kernel and daemon agreed on."""

    minor: int
    flags: InitFlag
    max_write: int
    max_readahead: int

    def has(self, flag: InitFlag) -> bool:
        """Tell whether a capability is in force."""
        return bool(self.flags & flag)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a mount is to behave. Bytes, counts and seconds as the names say; flags that the kernel lacks are left out silently.

    `passthrough` excludes `writeback_cache` (the kernel refuses backing files with it): ValueError.
    """

    # names of the mount
    source: str = "xtreemfs"
    subtype: str = "xtreemfs"
    allow_other: bool = True
    default_permissions: bool = True
    nosuid: bool = True
    nodev: bool = True
    noexec: bool = False
    readonly: bool = False
    noatime: bool = False
    # sizes
    max_write_bytes: int = 1 << 20
    max_read_bytes: int = 0  # 0: as large as max_write
    max_readahead_bytes: int = 1 << 20
    time_granularity_ns: int = 1
    # bounds
    max_background: int = 64  # readahead, write-back and asynchronous direct requests in flight, kept by the kernel
    congestion_threshold: int = 48  # from here on the kernel thinks twice about readahead
    outstanding_max: int = 1024  # requests whose handlers have not answered; beyond it nothing is read
    payload_bytes_max: int = 64 << 20  # of WRITEs in handlers; beyond it nothing is read
    lock_waits_max: int = 4096  # blocked SETLKW; more are refused with ENOLCK; not counted as outstanding
    notify_queue_max: int = 1024  # notifications that wait for the kernel
    notify_threads: int = 4  # notifications of one inode keep their order, of different ones need not
    request_timeout_s: int = 0  # the kernel aborts the connection when a request takes longer; 0: never
    # capabilities
    readdirplus: bool = True
    readdirplus_auto: bool = True
    posix_locks: bool = True
    flock_locks: bool = True
    posix_acl: bool = True
    parallel_dirops: bool = True
    async_read: bool = True
    async_dio: bool = True
    atomic_o_trunc: bool = True
    handle_killpriv_v2: bool = True
    export_support: bool = True
    explicit_inval_data: bool = True
    auto_inval_data: bool = False
    cache_symlinks: bool = True
    direct_io_allow_mmap: bool = True
    expire_only: bool = True
    setxattr_ext: bool = True
    create_supp_group: bool = False
    no_open_support: bool = False
    no_opendir_support: bool = False
    writeback_cache: bool = False
    passthrough: bool = False
    max_stack_depth: int = 1  # of file systems under a passthrough; 1: the backing file lies on a plain one

    def __post_init__(self) -> None:
        if self.passthrough and self.writeback_cache:
            raise ValueError("passthrough excludes writeback_cache")
        if self.max_write_bytes < PAGE_BYTES or self.max_write_bytes % PAGE_BYTES:
            raise ValueError(f"max_write_bytes must be a multiple of {PAGE_BYTES}")
        if min(self.outstanding_max, self.notify_queue_max, self.notify_threads) < 1:
            raise ValueError("bounds must be at least 1")

    def wanted_flags(self) -> InitFlag:
        """Return the capabilities to ask for. The daemon applies umasks itself (DONT_MASK): only it knows default ACLs."""
        choices = {
            InitFlag.DO_READDIRPLUS: self.readdirplus,
            InitFlag.READDIRPLUS_AUTO: self.readdirplus and self.readdirplus_auto,
            InitFlag.POSIX_LOCKS: self.posix_locks,
            InitFlag.FLOCK_LOCKS: self.flock_locks,
            InitFlag.POSIX_ACL: self.posix_acl,
            InitFlag.PARALLEL_DIROPS: self.parallel_dirops,
            InitFlag.ASYNC_READ: self.async_read,
            InitFlag.ASYNC_DIO: self.async_dio,
            InitFlag.ATOMIC_O_TRUNC: self.atomic_o_trunc,
            InitFlag.HANDLE_KILLPRIV_V2: self.handle_killpriv_v2,
            InitFlag.EXPORT_SUPPORT: self.export_support,
            InitFlag.EXPLICIT_INVAL_DATA: self.explicit_inval_data and not self.auto_inval_data,
            InitFlag.AUTO_INVAL_DATA: self.auto_inval_data,
            InitFlag.CACHE_SYMLINKS: self.cache_symlinks,
            InitFlag.DIRECT_IO_ALLOW_MMAP: self.direct_io_allow_mmap,
            InitFlag.HAS_EXPIRE_ONLY: self.expire_only,
            InitFlag.SETXATTR_EXT: self.setxattr_ext,
            InitFlag.CREATE_SUPP_GROUP: self.create_supp_group,
            InitFlag.NO_OPEN_SUPPORT: self.no_open_support,
            InitFlag.NO_OPENDIR_SUPPORT: self.no_opendir_support,
            InitFlag.WRITEBACK_CACHE: self.writeback_cache,
            InitFlag.PASSTHROUGH: self.passthrough,
            InitFlag.REQUEST_TIMEOUT: self.request_timeout_s > 0,
        }
        always = InitFlag.BIG_WRITES | InitFlag.MAX_PAGES | InitFlag.DONT_MASK | InitFlag.ABORT_ERROR | InitFlag.HAS_IOCTL_DIR
        for flag, wanted in choices.items():
            if wanted:
                always |= flag
        return always
