"""`xos fs scrub` and `fsck`: what an OSD has against its checksums, and a metadata server's store against itself and all OSDs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xtreemos.cli import context, fs_desk, fs_text
from xtreemos.cli.fs_desk import Place
from xtreemos.errors import EXIT_FAILURE, Unreachable, UsageError, XosError
from xtreemos.fabric.rpc import Peer
from xtreemos.foundation.frames import Kind
from xtreemos.node.config import load_node
from xtreemos.node.pausing import paused
from xtreemos.xtreemfs import calls, protocol
from xtreemos.xtreemfs.credential import CredentialFolder
from xtreemos.xtreemfs.directory import State as DirState
from xtreemos.xtreemfs.model import NUMBER_BITS
from xtreemos.xtreemfs.mrc import checking, crosscheck, fsck, schema
from xtreemos.xtreemfs.mrc.crosscheck import Columns, Finding
from xtreemos.xtreemfs.mrc.kv import Kv
from xtreemos.xtreemfs.mrc.snapshot import wait_snapshot
from xtreemos.xtreemfs.mrc.state import State
from xtreemos.xtreemfs.mrc.store import Lock
from xtreemos.xtreemfs.nodedirectory import NodeDirectory
from xtreemos.xtreemfs.protocol import ColumnRow
from xtreemos.xtreemfs.striping import OsdConnections

KNOWN_S = 15.0  # until xosd has told the directory
CONNECT_S = 5.0
COMMIT_S = 30.0  # the MRC commits every few seconds
INOS_STEP = 5_000
SHOWN = 100


class Servers:
    """The directory and the OSDs of a VO as this node's root reaches them. An async context."""

    def __init__(self, place: Place) -> None:
        paths, self.place = context.node_paths(), place
        self.node = load_node(paths).name
        self.directory = NodeDirectory(paths.admin_socket, vo=place.vo, node=self.node)
        credential = CredentialFolder(paths.private / "vo" / place.vo)
        self._connections = OsdConnections(self.directory, lambda: credential.identity)
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._following = asyncio.create_task(self.directory.run())
        try:
            async with asyncio.timeout(KNOWN_S):
                await self.directory.wait_synced()
        except TimeoutError:
            await self.__aexit__()
            raise Unreachable("xosd does not tell which servers there are", "see `xos status`") from None
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._following is not None:
            self._following.cancel()
        await self._connections.close()

    async def osd(self, node: str) -> Peer:
        """Connect to an OSD. Unreachable, FsError: it does not answer, or is unknown."""
        try:
            async with asyncio.timeout(CONNECT_S):
                return await self._connections.peer(node)
        except TimeoutError:
            raise Unreachable(f"the object server on {node} does not answer", "is the node on? see `xos nodes`") from None

    @property
    def state(self) -> DirState:
        """What the directory says now."""
        return self.directory.state


# -- scrub ---------------------------------------------------------------------------------------------------------------


async def scrub(vo: str | None, node: str | None) -> dict[str, Any]:
    """Read all columns of an OSD and compare them with their sums, with a progress bar; return what it found."""
    async with Servers(fs_desk.choose(vo)) as servers:
        where = node or servers.node
        if where not in servers.state.osds:
            known = ", ".join(sorted(servers.state.osds)) or "none"
            raise UsageError(f"node {where} has no object server of VO {servers.place.vo}", f"those that have one: {known}")
        peer = await servers.osd(where)
        call = peer.open("osd.scrub", calls.params(protocol.OsdScrub()))
        with _bar(f"scrubbing {where}", "columns") as progress:
            task = progress.add_task(f"scrubbing {where}", total=None)
            while True:
                frame = await call.receive()
                if frame.kind is Kind.RESULT:
                    return {"node": where, **_with_volumes(frame.body, servers.state)}
                progress.update(task, completed=frame.body["done"], total=frame.body["total"])


def _with_volumes(answer: dict[str, Any], state: DirState) -> dict[str, Any]:
    names = {record.id: record.name for record in state.volumes.values()}
    for kind in ("damaged", "torn"):
        rows = [
            row if isinstance(row, dict) else dict(zip(("ino", "column", "block", "kind", "found_at"), row, strict=False))
            for row in answer[kind]
        ]
        answer[kind] = [{**row, "volume": names.get(row["ino"] >> NUMBER_BITS, "?")} for row in rows]
    return answer


def tell_scrub(answer: dict[str, Any]) -> int:
    """Say what a scrub found; return the exit code."""
    print(f"{answer['node']}: {answer['files']} columns, {fs_text.size(answer['bytes'])}B were read and compared")
    files = {(row["volume"], row["ino"]): 0 for row in answer["damaged"]}
    for row in answer["damaged"]:
        files[row["volume"], row["ino"]] += 1
    for (volume, ino), count in sorted(files.items()):
        print(f"damaged: {count} blocks of inode {ino} in volume {volume} (its name: find /xos/*/{volume} -inum {ino})")
    if answer["torn"]:
        print(f"{len(answer['torn'])} blocks were torn by a crash before they were synced; they were taken as they are")
    if files:
        fs_text.note("there is one copy of each file: restore these from a backup; writing a block anew heals it")
        return EXIT_FAILURE
    print("no damage")
    return 0


def _bar(word: str, unit: str) -> Progress:
    del word
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


# -- fsck ----------------------------------------------------------------------------------------------------------------


class Report:
    """What a check found, said as it is found."""

    def __init__(self) -> None:
        self.store = 0
        self.mended = 0
        self.findings: list[Finding] = []
        self._said = 0

    def say(self, line: str) -> None:
        """Print a line, the first SHOWN of them."""
        self._said += 1
        if self._said <= SHOWN:
            print(line, flush=True)
        elif self._said == SHOWN + 1:
            print("(more of these are counted, not shown)", flush=True)


async def check(vo: str | None, *, repair: bool) -> int:
    """Check this node's MRC and the columns of its files; return the exit code.

    Without `repair` a running MRC is checked as of its last commit, and nobody is disturbed. With it the MRC is stopped meanwhile: programs that
    need it wait, those that work on what their node holds go on for some seconds.
    """
    place = fs_desk.choose(vo)
    folder = context.node_paths().private / "fs" / place.vo / "mrc"
    if not (folder / "db").is_dir():
        raise UsageError(f"this node has no metadata server of VO {place.vo}", "core nodes have one; `xos fs volumes` says which")
    report = Report()
    async with Servers(place) as servers:
        if repair:
            with paused(context.node_paths(), f"mrc.{place.vo}"):
                fs_text.note("the metadata server is stopped while its store is mended; programs wait")
                await _offline(folder, servers, report, repair=True)
            await _wait_serving(place)
        elif (place.run / "mrc.sock").exists():
            await _online(folder, servers, report)
        else:
            await _offline(folder, servers, report, repair=False)
    return _verdict(report, repair=repair)


async def _online(folder: Path, servers: Servers, report: Report) -> None:
    """Check beside the running MRC. What a first look finds is believed if a second one finds it, too: files come and go meanwhile."""
    first = await _look_online(folder, servers)
    if any(first):
        second = await _look_online(folder, servers)
        first = (
            [text for text in first[0] if text in second[0]],
            [one for one in first[1] if one.text in {two.text for two in second[1]}],
        )
    for text in first[0]:
        report.say(text)
    for one in first[1]:
        report.say(one.text)
    report.store, report.findings = len(first[0]), first[1]


async def _look_online(folder: Path, servers: Servers) -> tuple[list[str], list[Finding]]:
    columns = await list_columns(servers)
    status = await servers.place.ask("mrc.status", calls.params(protocol.Status(protocol.Who(0))), socket="mrc")
    snapshot = await wait_snapshot(folder, int(status["durable"]), patience_s=COMMIT_S)
    try:
        problems = [problem.text for problem in checking.check(snapshot)]
        return problems, await _cross(snapshot, servers, columns)
    finally:
        snapshot.close()


async def _offline(folder: Path, servers: Servers, report: Report, *, repair: bool) -> None:
    """Check, and mend, the store of an MRC that does not run."""
    lock = Lock(folder)
    try:
        store = fsck.open_checked(folder, repair=repair)
        try:
            columns = await list_columns(servers)
            if repair:
                report.mended = checking.repair(store.kv, report.say)
            else:
                found = checking.check(store.kv)
                report.store = len(found)
                for problem in found:
                    report.say(problem.text)
            findings = await _cross(store.kv, servers, columns)
            for finding in findings:
                report.say(finding.text + (f": {finding.mends}" if repair and finding.mends else ""))
            if repair:
                findings = _mend(store.kv, findings, report)
            report.findings = findings
        finally:
            store.close()
    finally:
        lock.close()


def _mend(kv: Kv, findings: list[Finding], report: Report) -> list[Finding]:
    """Carry out what can be; return what is left."""
    state = State(kv, schema.unpack64(kv.get(schema.SEQ) or bytes(8)))
    for finding in findings:
        if finding.problem is not None:
            finding.problem.repair(state)
            report.mended += 1
    checking.repair(kv, lambda _text: None)  # use is counted anew, and so on: not worth a line
    return [finding for finding in findings if finding.problem is None]


async def _cross(kv: Kv, servers: Servers, columns: Columns) -> list[Finding]:
    seen, mrc = checking.look(kv), servers.node
    volumes = {record.id: record for record in servers.state.volumes.values()}
    inos = sorted(crosscheck.suspects(seen, columns, mrc, volumes))
    if inos:
        columns = await _with_lengths(servers, columns, inos)
    return crosscheck.check(seen, State(kv, 0), columns, mrc, volumes)


async def list_columns(servers: Servers) -> Columns:
    """Ask all OSDs what they have; those that do not answer are silent."""
    rows: dict[str, list[ColumnRow]] = {}
    silent = set()
    with _bar("asking", "object servers") as progress:
        task = progress.add_task("asking", total=len(servers.state.osds))
        for node in sorted(servers.state.osds):
            try:
                rows[node] = await _columns_of(await servers.osd(node), ())
            except XosError as error:
                silent.add(node)
                fs_text.note(f"the object server on {node} is left out: {error.line()}")
            progress.advance(task)
    return Columns(rows, frozenset(silent))


async def _columns_of(peer: Peer, inos: tuple[int, ...]) -> list[ColumnRow]:
    rows: list[ColumnRow] = []
    call = peer.open("osd.columns", calls.params(protocol.OsdColumns(inos)))
    while True:
        frame = await call.receive()
        if frame.kind is Kind.RESULT:
            return rows
        rows += calls.answer_of(frame.body, list[ColumnRow])


async def _with_lengths(servers: Servers, columns: Columns, inos: list[int]) -> Columns:
    """Ask again for some files: with their lengths, and whether they are still there."""
    wanted = frozenset(inos)
    rows = {}
    for node, known in columns.rows.items():
        kept = [row for row in known if row.ino not in wanted]
        peer = await servers.osd(node)
        for at in range(0, len(inos), INOS_STEP):
            kept += await _columns_of(peer, tuple(inos[at : at + INOS_STEP]))
        rows[node] = kept
    return Columns(rows, columns.silent)


async def _wait_serving(place: Place) -> None:
    """Wait until the MRC answers again, so that whoever comes next finds it."""
    await _until(lambda: place.ask("mrc.status", calls.params(protocol.Status(protocol.Who(0))), socket="mrc"))


async def _until(ask: Callable[[], Awaitable[Any]]) -> None:
    last: XosError | None = None
    try:
        async with asyncio.timeout(COMMIT_S):
            while True:
                try:
                    await ask()
                except Unreachable as error:
                    last = error
                else:
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise Unreachable("the metadata server did not start again", "see its log; `xos up` starts it") from last


def _verdict(report: Report, *, repair: bool) -> int:
    lost = [finding for finding in report.findings if finding.problem is None]
    found = report.store + len(report.findings)
    if repair and report.mended:
        print(f"{report.mended} problems, mended")
    if found == 0:
        print("sound")
        return 0
    if lost:
        fs_text.note(
            f"{len(lost)} findings are lost data, which no repair brings back: restore these files from a backup, or remove them"
        )
    if found > len(lost):
        fs_text.note(f"{found - len(lost)} problems; `xos fs fsck --repair` mends them (the metadata server is stopped meanwhile)")
    return EXIT_FAILURE
