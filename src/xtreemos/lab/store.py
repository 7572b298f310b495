"""Where labs keep their records on disk, and the lock that makes concurrent lab commands take turns.

    ~/.local/state/xtreemos/lab/NAME/        0700
        lab.json       what the lab is (model.Lab); replaced as a whole, so readers need no lock
        users.json     {"alice": PASSWORD, "bob": PASSWORD}, 0600
        nodes/N/state, log, home, root       bind-mounted into node N

Knows files only; must not know namespaces or the product.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from xtreemos.lab.model import Lab, LabError, Node, NoSuchLab, check_lab_name, lab_from_json

NODE_FOLDERS = ("state", "log", "home", "root")


def labs_dir() -> Path:
    """Folder that holds one folder per lab."""
    return Path(os.path.expanduser("~")) / ".local" / "state" / "xtreemos" / "lab"


def lab_dir(name: str) -> Path:
    """Folder LAB of the lab `name`."""
    return labs_dir() / check_lab_name(name)


def node_dir(lab: Lab, node: Node) -> Path:
    """Folder of one node, with NODE_FOLDERS in it."""
    return lab_dir(lab.name) / "nodes" / node.name


def make_node_dir(lab: Lab, node: Node) -> Path:
    """Make the node's folders if they are not there yet and return the folder above them."""
    folder = node_dir(lab, node)
    for part in NODE_FOLDERS:
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "root").chmod(0o700)
    return folder


def create(lab: Lab) -> None:
    """Make the lab's folder; raise LabError if there is one already."""
    folder = lab_dir(lab.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as exists:
        raise LabError(f"lab {lab.name} exists already", f"`xos lab down --name {lab.name}` removes it") from exists
    save(lab)


def save(lab: Lab) -> None:
    """Replace the lab's record as a whole; survives a crash at any point as the old or the new one."""
    write_private(lab_dir(lab.name) / "lab.json", json.dumps(lab.to_json(), indent=1))


def load(name: str) -> Lab:
    """Return the record of the lab `name`; raise NoSuchLab."""
    try:
        text = (lab_dir(name) / "lab.json").read_text()
    except FileNotFoundError:
        raise NoSuchLab(f"there is no lab {name!r}", "make one with `xos lab up`") from None
    try:
        return lab_from_json(json.loads(text))
    except (ValueError, KeyError, TypeError) as bad:
        raise LabError(f"the record of lab {name} cannot be read", f"`xos lab down --name {name}` removes the lab") from bad


def names() -> list[str]:
    """Names of all labs that have a folder, sorted."""
    folder = labs_dir()
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def save_users(name: str, passwords: dict[str, str]) -> None:
    """Write users.json, readable by the owner only."""
    write_private(lab_dir(name) / "users.json", json.dumps(passwords, indent=1) + "\n")


def load_users(name: str) -> dict[str, str]:
    """Return {user: password}; empty if the lab has no users yet."""
    try:
        raw = json.loads((lab_dir(name) / "users.json").read_text())
    except FileNotFoundError:
        return {}
    return {str(user): str(password) for user, password in raw.items()}


def remove(name: str) -> None:
    """Delete the lab's folder, and the folder of labs if this was the last one. Nothing may be mounted below."""
    folder = lab_dir(name)
    if folder.exists():
        shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # not empty: other labs
        labs_dir().rmdir()


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, mode 0600, never visible half-written."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lab's lock (waits for others). The lock file goes when its lab is gone, hence the second look at the inode."""
    check_lab_name(name)
    labs_dir().mkdir(parents=True, exist_ok=True)
    path = labs_dir() / f".{name}.lock"
    while True:
        labs_dir().mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _still_there(path, descriptor):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        if not lab_dir(name).exists():
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other labs are there
                labs_dir().rmdir()
        os.close(descriptor)


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
