"""`xos fs import` and `export`: which folder a VOLUME:DIR is, the copy (see fs_copy) with its progress on the terminal, the sum at the end."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from xtreemos.cli import context, fs_desk, fs_text
from xtreemos.cli.fs_copy import Copier, CopyIncomplete
from xtreemos.errors import PermissionRefused, UsageError

LOOK_S = 0.1
LINE_S = 30.0  # without a terminal a line is written so often
PROBLEMS_SHOWN = 20
STOPPED_EXIT = 130


def place_of(vo: str | None, words: str) -> Path:
    """Return the folder that VOLUME[:DIR] means; for root the one of a mount as root of the volume.

    Raises:
        UsageError: no such volume, or DIR leads out of it. PermissionRefused: it cannot be entered.
    """
    volume, _colon, inside = words.partition(":")
    place = fs_desk.choose(vo)
    relative = os.path.normpath(inside.lstrip("/") or ".")
    if relative == ".." or relative.startswith("../"):
        raise UsageError(f"{inside[:80]!r} leads out of the volume")
    top = place.mountpoint / volume
    if os.geteuid() == 0:
        top = _root_mount(place.vo, volume)
    try:
        os.stat(top / ".")
    except FileNotFoundError:
        raise UsageError(f"there is no volume {volume[:64]!r} in VO {place.vo}", "`xos fs volumes` lists them") from None
    except OSError as error:
        raise PermissionRefused(f"you may not enter volume {volume}: {(error.strerror or '').lower()}", "ask its owner") from error
    return top / relative


def _root_mount(vo: str, volume: str) -> Path:
    from xtreemos.node import mounts

    for record in mounts.records(context.node_paths()):
        if (record.vo, record.volume) == (vo, volume) and record.owner and record.is_alive():
            return Path(record.dir)
    raise PermissionRefused(
        "root of this machine is a stranger in the grid's files",
        f"mount the volume as its root first (xos fs mount --root {volume} DIR), or do it as the volume's owner",
    )


def transfer(word: str, source: Path, target: Path, *, threads: int, verify: bool) -> None:
    """Copy a folder's contents into `target`, or a file to below it, and say how it went.

    Raises:
        UsageError: there is nothing to copy, or one lies in the other. CopyIncomplete: something is missing.
    """
    if not os.path.lexists(source):
        raise UsageError(f"there is no {source}")
    real, into = os.path.realpath(source), os.path.realpath(target)
    if f"{into}/".startswith(f"{real}/"):
        raise UsageError(f"{target} lies in {source}", "copy to somewhere else")
    _make(target)
    if not source.is_dir():
        target /= source.name
    copier = Copier(str(source), str(target), threads=threads, verify=verify, owners=os.geteuid() == 0)
    began = time.monotonic()
    _watch(copier, word)
    _tell(copier, word, time.monotonic() - began)


def _make(target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"{target} is no folder") from None
    except OSError as error:
        raise PermissionRefused(
            f"{target} cannot be made: {(error.strerror or '').lower()}", "ask the owner of the folder above it"
        ) from error


def _watch(copier: Copier, word: str) -> None:
    """Run the copy in a thread and show it from here; Ctrl-C ends it."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[files]}"),
    )  # fmt: skip
    thread = threading.Thread(target=copier.run, name="copier")
    live = sys.stderr.isatty()
    told = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), disable=not live, transient=True) as progress:
        task = progress.add_task(word, total=None, files="")
        thread.start()
        try:
            while thread.is_alive():
                thread.join(LOOK_S)
                tally = copier.tally
                files = f"{tally.files} of {tally.files_total} files"
                progress.update(task, completed=tally.bytes, total=max(1, tally.bytes_total), files=files)
                if not live and time.monotonic() - told >= LINE_S:
                    told = time.monotonic()
                    fs_text.note(f"{word} {files}, {fs_text.size(tally.bytes)}B of {fs_text.size(tally.bytes_total)}B")
        except KeyboardInterrupt:
            copier.stop()
            thread.join()
    if copier.stopped and not copier.fatal:
        fs_text.note(f"stopped after {copier.tally.files} files; the same command goes on from there")
        sys.exit(STOPPED_EXIT)


def _tell(copier: Copier, word: str, took_s: float) -> None:
    tally = copier.tally
    for line in tally.problems[:PROBLEMS_SHOWN]:
        fs_text.note(line)
    for what, count in sorted(tally.unkept.items()):
        fs_text.note(f"not kept: {what} ({count} times)")
    there = f", {tally.skipped} were there already" if tally.skipped else ""
    compared = f"; {tally.compared} compared byte by byte" if tally.compared else ""
    rate = fs_text.size(tally.moved / max(took_s, 0.001))
    copied = tally.good - min(tally.skipped, tally.good)
    print(f"{word}: {copied} files, {fs_text.size(tally.moved)}B in {took_s:.1f} s ({rate}B/s){there}{compared}", flush=True)
    if copier.fatal:
        raise CopyIncomplete(f"given up: {copier.fatal}", "mend that; the same command then goes on from there")
    if tally.problem_count:
        more = tally.problem_count - PROBLEMS_SHOWN
        shown = f" ({more} more are not shown)" if more > 0 else ""
        raise CopyIncomplete(f"{tally.problem_count} could not be copied{shown}", "mend that and say the same command again")
