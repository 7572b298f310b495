"""Everything that can change the MRC's state: the commands of its log. Wire shapes only; what they do is in `machine`.

A command carries all that its outcome depends on besides the state: who (`cred`), when (`now_ns`), which layout, who has it pinned. So it
has the same outcome each time it is applied. Fields are only ever added at the end, with defaults: old logs are read by newer programs.
"""

from __future__ import annotations

import msgspec

from xtreemos.xtreemfs.model import Layout, Share, VolumeRecord
from xtreemos.xtreemfs.mrc.model import Cred


class Command(msgspec.Struct, frozen=True, array_like=True):
    """Base of all commands."""


class Create(Command, frozen=True, array_like=True, tag=1):
    """Make an inode of the type in `mode` and give it a name (or none: `anonymous`).

    `session` gets a WRITE lease of `epoch` with a regular file. A name that is there is EEXIST.
    """

    cred: Cred
    dir: int
    name: bytes
    mode: int
    umask: int
    now_ns: int
    rdev: int = 0
    link: bytes = b""
    layout: Layout | None = None
    session: str = ""
    epoch: int = 0
    anonymous: bool = False
    promise: bool = False
    """Promise its writer some room (`quota`); logs of older servers made none here."""


class Link(Command, frozen=True, array_like=True, tag=2):
    """Give an inode that is no directory one more name."""

    cred: Cred
    ino: int
    dir: int
    name: bytes
    now_ns: int


class Unlink(Command, frozen=True, array_like=True, tag=3):
    """Take a name away. `ino`: what it stood for when its holders were asked (0: nobody was); `keep`: somebody has it open."""

    cred: Cred
    dir: int
    name: bytes
    now_ns: int
    directory: bool = False
    ino: int = 0
    keep: bool = False


class Rename(Command, frozen=True, array_like=True, tag=4):
    """As renameat2. `ino`, `new_ino`: what the names stood for when holders were asked; `keep`: somebody has open what is replaced."""

    cred: Cred
    dir: int
    name: bytes
    new_dir: int
    new_name: bytes
    flags: int
    now_ns: int
    ino: int = 0
    new_ino: int = 0
    keep: bool = False


class SetAttr(Command, frozen=True, array_like=True, tag=5):
    """chmod, chown, truncate, utimens; -1: unchanged. `held`: the asker proved its right to write (it holds the WRITE lease)."""

    cred: Cred
    ino: int
    now_ns: int
    mode: int = -1
    uid: int = -1
    gid: int = -1
    size: int = -1
    atime_ns: int = -1
    mtime_ns: int = -1
    times_now: int = 0
    held: bool = False


class Update(Command, frozen=True, array_like=True, tag=6):
    """What the holder of a WRITE lease changed by itself; -1: unchanged."""

    ino: int
    size: int = -1
    blocks: int = -1
    mtime_ns: int = -1
    ctime_ns: int = -1
    atime_ns: int = -1
    mode: int = -1
    done: bool = False
    """Nobody writes it any more, so nothing beyond its size need be promised."""


class SetXattr(Command, frozen=True, array_like=True, tag=7):
    """Set an xattr or an ACL. `flags`: 1 create, 2 replace."""

    cred: Cred
    ino: int
    name: bytes
    value: bytes
    flags: int
    now_ns: int


class RemoveXattr(Command, frozen=True, array_like=True, tag=8):
    """Remove an xattr or an ACL."""

    cred: Cred
    ino: int
    name: bytes
    now_ns: int


class Free(Command, frozen=True, array_like=True, tag=9):
    """Nobody has these any more: those among them that have no name are deleted."""

    inos: tuple[int, ...]


class Writer(Command, frozen=True, array_like=True, tag=11):
    """A client may write a file from now on, or (`client` "") its writer was evicted and the file is being fenced with `epoch`."""

    client: str
    ino: int
    epoch: int
    through: int = 0


class WritersDone(Command, frozen=True, array_like=True, tag=10):
    """These (ino, client) have given their right to write back, or have been fenced (client "")."""

    rows: tuple[tuple[int, str], ...]


class OpenSession(Command, frozen=True, array_like=True, tag=12):
    """A client came."""

    client: str
    node: str
    now_s: int


class CloseSession(Command, frozen=True, array_like=True, tag=13):
    """Nothing is left of a client's session."""

    client: str


class Epochs(Command, frozen=True, array_like=True, tag=14):
    """Epochs below `below` may be given from now on without a word in the log."""

    below: int


class Principals(Command, frozen=True, array_like=True, tag=15):
    """Make sure that these (kind u or g, name) have numbers."""

    names: tuple[tuple[str, str], ...]


class MakeVolume(Command, frozen=True, array_like=True, tag=16):
    """Make an empty volume, whose root belongs to `uid`. It is `new` until DIR knows it (`VolumeTold`).

    `inherited`: what is made in it gets permissions as far as the root has them, by a default ACL, and so in spite of umasks.
    """

    record: VolumeRecord
    mode: int
    uid: int
    gid: int
    now_ns: int
    inherited: bool = False


class VolumeTold(Command, frozen=True, array_like=True, tag=17):
    """DIR has the volume's record now."""

    volume: int


class RemoveVolume(Command, frozen=True, array_like=True, tag=18):
    """Withdraw a volume: it is served no more, and `Purge` deletes it. Refused (ENOTEMPTY) unless empty or `force`."""

    volume: int
    force: bool = False


class Purge(Command, frozen=True, array_like=True, tag=19):
    """Delete some of a withdrawn volume."""

    volume: int
    keys: int


class Deleted(Command, frozen=True, array_like=True, tag=20):
    """An OSD has deleted these files' columns."""

    osd: str
    inos: tuple[int, ...]


class SetQuota(Command, frozen=True, array_like=True, tag=21):
    """Limits of a volume (`owner` -1) or of one owner in it; 0: none."""

    volume: int
    owner: int
    bytes: int
    files: int


class Promise(Command, frozen=True, array_like=True, tag=22):
    """Promise a file's writers room to grow: up to `end` bytes if that can be, and some more (`quota`)."""

    ino: int
    end: int = 0


Changing = Create | Link | Unlink | Rename | SetAttr | SetXattr | RemoveXattr
"""What a program waits for and a client may send again when the answer was lost."""


class Once(Command, frozen=True, array_like=True, tag=23):
    """Do a change, and keep what it answers until the session says (`below`) that it has heard. Refused if it was done (`replies`)."""

    session: str
    life: int
    number: int
    below: int
    change: Changing


class SetShare(Command, frozen=True, array_like=True, tag=24):
    """The agreement about a volume with one other VO, in the place of an older one; `share` None: there is none any more."""

    volume: int
    vo: str
    share: Share | None


AnyCommand = (
    Create | Link | Unlink | Rename | SetAttr | Update | SetXattr | RemoveXattr | Free | Writer | WritersDone | OpenSession | CloseSession
    | Epochs | Principals | MakeVolume | VolumeTold | RemoveVolume | Purge | Deleted | SetQuota | Promise | Once | SetShare
)  # fmt: skip

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(AnyCommand).decode
