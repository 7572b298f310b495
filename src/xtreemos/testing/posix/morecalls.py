"""The rest of the vocabulary: extended attributes, ACLs, locks, mappings, holes, directory streams, sockets, limits."""

# ruff: noqa: D103 - a vocabulary: the name of the call says it, the man page explains it
from __future__ import annotations

import errno
import fcntl
import mmap as mappings
import os
import resource
import socket
import struct

from xtreemos.testing.posix import libc
from xtreemos.testing.posix.calls import call, opened
from xtreemos.testing.posix.process import Place, Process

FLOCK = struct.Struct("hhqqi4x")
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid."""
ACL_ENTRY = struct.Struct("<HHI")
ACL_VERSION = 2
ACL_NO_ID = 0xFFFFFFFF
_TAGS = {("u", False): 0x01, ("u", True): 0x02, ("g", False): 0x04, ("g", True): 0x08, ("m", False): 0x10, ("o", False): 0x20}
_TAG_LETTERS = {number: letter for (letter, _), number in _TAGS.items()}


@call
def setxattr(_process: Process, _place: Place, path: str | int, name: str, value: bytes, flags: int = 0) -> None:
    os.setxattr(path, name, value, flags)


@call
def lsetxattr(_process: Process, _place: Place, path: str, name: str, value: bytes) -> None:
    os.setxattr(path, name, value, 0, follow_symlinks=False)


@call
def getxattr(_process: Process, _place: Place, path: str | int, name: str) -> bytes:
    return os.getxattr(path, name)


@call
def lgetxattr(_process: Process, _place: Place, path: str, name: str) -> bytes:
    return os.getxattr(path, name, follow_symlinks=False)


@call
def listxattr(_process: Process, _place: Place, path: str | int) -> list[str]:
    """Names without those of security modules, which the host adds as it likes."""
    return sorted(name for name in os.listxattr(path) if not name.startswith("security."))


@call
def removexattr(_process: Process, _place: Place, path: str | int, name: str) -> None:
    os.removexattr(path, name)


def encode_acl(process: Process, text: str) -> bytes:
    """`u::rwx,u:peer:r--,g::r-x,m::rwx,o::---` in the kernel's xattr form (version 2, little endian)."""
    entries = []
    for word in text.split(","):
        letter, who, rights = word.split(":")
        bits = sum(bit for bit, sign in zip((4, 2, 1), rights, strict=True) if sign != "-")
        number = ACL_NO_ID if not who else process.facts.uid(who) if letter == "u" else process.facts.gid(who)
        entries.append((_TAGS[letter, bool(who)], bits, number))
    in_order = sorted(entries, key=lambda entry: (entry[0], entry[2]))
    return struct.pack("<I", ACL_VERSION) + b"".join(ACL_ENTRY.pack(*entry) for entry in in_order)


def decode_acl(process: Process, raw: bytes) -> str:
    words = []
    for tag, bits, number in ACL_ENTRY.iter_unpack(raw[4:]):
        letter = _TAG_LETTERS[tag]
        name = (
            ""
            if number == ACL_NO_ID
            else str(process.facts.user_name(number) if letter == "u" else process.facts.group_name(number))
        )
        words.append(f"{letter}:{name}:" + "".join(sign if bits & bit else "-" for bit, sign in ((4, "r"), (2, "w"), (1, "x"))))
    return ",".join(words)


def _acl_name(which: str) -> str:
    return f"system.posix_acl_{which}"


@call
def setacl(process: Process, _place: Place, path: str, which: str, text: str) -> None:
    """`which` is "access" or "default"."""
    os.setxattr(path, _acl_name(which), encode_acl(process, text))


@call
def setacl_raw(_process: Process, _place: Place, path: str, which: str, raw: bytes) -> None:
    os.setxattr(path, _acl_name(which), raw)


@call
def getacl(process: Process, _place: Place, path: str, which: str) -> str:
    return decode_acl(process, os.getxattr(path, _acl_name(which)))


@call
def removeacl(_process: Process, _place: Place, path: str, which: str) -> None:
    os.removexattr(path, _acl_name(which))


def _flock(kind: int, start: int, length: int) -> bytes:
    return FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


@call
def setlk(_process: Process, _place: Place, fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETLK, _flock(kind, start, length))


@call
def setlkw(_process: Process, _place: Place, fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETLKW, _flock(kind, start, length))


@call
def getlk(_process: Process, _place: Place, fd: int, kind: int, start: int, length: int) -> list[int]:
    """(type, start, length) of the first lock in the way; type F_UNLCK if there is none."""
    kind, _, start, length, _ = FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, _flock(kind, start, length)))
    return [kind] if kind == fcntl.F_UNLCK else [kind, start, length]


@call
def ofd_setlk(_process: Process, _place: Place, fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(kind, start, length))


@call
def ofd_setlkw(_process: Process, _place: Place, fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _flock(kind, start, length))


@call
def ofd_getlk(_process: Process, _place: Place, fd: int, kind: int, start: int, length: int) -> list[int]:
    kind, _, start, length, _ = FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(kind, start, length)))
    return [kind] if kind == fcntl.F_UNLCK else [kind, start, length]


@call
def flock(_process: Process, _place: Place, fd: int, operation: int) -> None:
    fcntl.flock(fd, operation)


@call
def fcntl_(_process: Process, _place: Place, fd: int, command: int, argument: int = 0) -> int:
    return fcntl.fcntl(fd, command, argument)


@call
def fallocate(_process: Process, _place: Place, fd: int, mode: int, offset: int, length: int) -> None:
    libc.fallocate(fd, mode, offset, length)


@call
def posix_fallocate(_process: Process, _place: Place, fd: int, offset: int, length: int) -> None:
    os.posix_fallocate(fd, offset, length)


@call
def copy_file_range(
    _process: Process, _place: Place, source: int, target: int, count: int, source_offset: int | None, target_offset: int | None
) -> int:
    return os.copy_file_range(source, target, count, source_offset, target_offset)


@call
def sendfile(_process: Process, _place: Place, target: int, source: int, offset: int | None, count: int) -> int:
    return os.sendfile(target, source, offset, count)


@call
def mmap(_process: Process, place: Place, fd: int, length: int, flags: int, protection: int) -> None:
    """Map a file from its start; the case's only mapping, which peek, poke and msync use."""
    mapping = mappings.mmap(fd, length, flags, protection)
    place.objects.append(mapping)
    place.slots["mapping"] = mapping


def _mapping(place: Place) -> mappings.mmap:
    mapping = place.slots["mapping"]
    assert isinstance(mapping, mappings.mmap)
    return mapping


@call
def peek(_process: Process, place: Place, offset: int, count: int) -> bytes:
    return _mapping(place)[offset : offset + count]


@call
def poke(_process: Process, place: Place, offset: int, data: bytes) -> None:
    _mapping(place)[offset : offset + len(data)] = data


@call
def msync(_process: Process, place: Place) -> None:
    _mapping(place).flush()


@call
def munmap(_process: Process, place: Place) -> None:
    _mapping(place).close()


@call
def opendir(_process: Process, place: Place, path: str) -> None:
    stream = libc.Directory(path)
    place.objects.append(stream)
    place.slots["stream"] = stream


def _stream(place: Place) -> libc.Directory:
    stream = place.slots["stream"]
    assert isinstance(stream, libc.Directory)
    return stream


@call
def readdir(_process: Process, place: Place, count: int = 1 << 20) -> list[str]:
    """Up to `count` names in the stream's order, `.` and `..` included."""
    stream, found = _stream(place), list[str]()
    while len(found) < count and (name := stream.read()) is not None:
        found.append(name)
    return found


@call
def readdir_sorted(_process: Process, place: Place) -> list[str]:
    stream, found = _stream(place), list[str]()
    while (name := stream.read()) is not None:
        found.append(name)
    return sorted(found)


@call
def rewinddir(_process: Process, place: Place) -> None:
    _stream(place).rewind()


@call
def seek_everywhere(_process: Process, place: Place) -> list[str]:
    """Take telldir before each entry, then seekdir to each place, last first; returns the names that came at another place."""
    stream, seen = _stream(place), list[tuple[int, str]]()
    stream.rewind()
    while True:
        position = stream.tell()
        name = stream.read()
        if name is None:
            break
        seen.append((position, name))
    wrong = []
    for position, name in reversed(seen):
        stream.seek(position)
        if stream.read() != name:
            wrong.append(name)
    return wrong


@call
def many(_process: Process, _place: Place, folder: str, count: int, prefix: str = "f") -> None:
    """Make `count` empty files in a folder."""
    for number in range(count):
        os.close(os.open(f"{folder}/{prefix}{number:05}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


@call
def remove_many(_process: Process, _place: Place, folder: str, count: int, prefix: str = "f") -> None:
    for number in range(count):
        os.unlink(f"{folder}/{prefix}{number:05}")


@call
def long_path(_process: Process, _place: Place, length: int, last: str) -> str:
    """Make nested folders so that `./aaa.../last` is `length` bytes long; returns that path."""
    here = "."
    while length - len(here) - 1 - len(last) > 1:
        room = length - len(here) - 1 - len(last)  # for "/name", or nothing
        step = "a" * (min(room, 201) - 1)
        if room - len(step) - 1 == 1:
            step = step[:-1]
        here = f"{here}/{step}"
        os.mkdir(here, 0o777)
    path = f"{here}/{last}"
    assert len(path) == length, (len(path), length)
    return path


@call
def bind_socket(_process: Process, place: Place, path: str) -> None:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    place.objects.append(server)
    server.bind(path)
    server.listen(1)


@call
def connect_socket(_process: Process, place: Place, path: str) -> None:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    place.objects.append(client)
    client.connect(path)


@call
def limit_file_size(_process: Process, _place: Place, length: int) -> None:
    """RLIMIT_FSIZE, soft only; -1 takes the limit away."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))


@call
def append_records(_process: Process, _place: Place, path: str, letter: str, count: int, size: int) -> None:
    """Append `count` records of one letter, each by one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(count):
            os.write(fd, letter.encode() * (size - 1) + b"\n")
    finally:
        os.close(fd)


@call
def records(_process: Process, _place: Place, path: str) -> dict[str, int]:
    """How often each line occurs in a file, by its first letter and length."""
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    found: dict[str, int] = {}
    for line in lines[:-1]:
        kind = f"{chr(line[0])}{len(line)}" if line and line == line[:1] * len(line) else "torn"
        found[kind] = found.get(kind, 0) + 1
    return found


@call
def statvfs(_process: Process, _place: Place, path: str | int) -> dict[str, object]:
    found = os.statvfs(path)
    return {
        "name_max": found.f_namemax,
        "block": found.f_bsize,
        "blocks": found.f_blocks,
        "free": found.f_bfree,
        "files": found.f_files,
    }


@call
def pathconf(_process: Process, _place: Place, path: str, name: str) -> int:
    return os.pathconf(path, name)


@call
def open_memory(_process: Process, place: Place, data: bytes) -> int:
    """A descriptor of another file system's file, with this content."""
    fd = opened(place, os.memfd_create("other"))
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _demand(condition: bool, words: str) -> None:
    """A comparison that a step cannot say: failing it is a failed call."""
    if not condition:
        raise OSError(errno.EILSEQ, words)


@call
def same_birth(_process: Process, _place: Place, path: str, born: int) -> None:
    _demand(libc.birth_time_ns(path) == born, "born at another time")


@call
def birth_before_ctime(_process: Process, _place: Place, path: str) -> None:
    born = libc.birth_time_ns(path)
    _demand(born is not None and born <= os.lstat(path).st_ctime_ns, "changed before it was born")


@call
def younger(_process: Process, _place: Place, path: str, other: str) -> None:
    one, two = libc.birth_time_ns(path), libc.birth_time_ns(other)
    _demand(one is not None and two is not None and one > two, "not younger")
