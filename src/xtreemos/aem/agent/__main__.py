"""`python -m xtreemos.aem.agent --grid DIR --vo VO --user USER`: one session. Reads the password from standard input."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from xtreemos.aem.agent.commands import Commands
from xtreemos.aem.agent.core import AgentCore, choose
from xtreemos.aem.agent.detached import Detached
from xtreemos.aem.agent.ghosts import GhostServer
from xtreemos.aem.agent.local import LocalNode
from xtreemos.aem.agent.nodes import NodePool, NodesSilent
from xtreemos.aem.agent.ports import Hello, Run
from xtreemos.aem.agent.session import Session, kept_session
from xtreemos.aem.agent.sshagent import SshAgent
from xtreemos.aem.agent.tickets import Tickets
from xtreemos.errors import InternalError, PermissionRefused, RemoteError, UsageError, XosError
from xtreemos.fabric import rpc, subjects
from xtreemos.fabric.connection import Fabric
from xtreemos.fabric.rpc import ServerCall
from xtreemos.foundation.keyring import KeyringFailed, possess_user_keyring
from xtreemos.foundation.paths import RPC_PORT, agent_dir
from xtreemos.vo.client import client_for
from xtreemos.vo.grid import load_grid

log = logging.getLogger("xtreemos.aem.agent")

TICKET_S = 3.0  # an ssh log-in waits no longer for the node's answer
REFUSED = "Authorization Violation"  # the server's own words


class Agent:
    """The process: wires session, nodes, ghosts and the command line's socket."""

    def __init__(self, session: Session, directory: Path, local: LocalNode) -> None:
        self.session = session
        self.directory = directory
        self.fabric: Fabric
        self.tickets = Tickets(session)
        self.pool = NodePool(session.issued.trust, lambda: session.identity, self._gather, self.tickets.give)
        self.local = local
        self.core = AgentCore(vo=session.entry.vo, user=session.credentials.name, pool=self.pool, local=local)
        self.ghosts = GhostServer(chooser=lambda hello: choose(hello.words, session.entry.vo), resumer=self._resume)
        self._named = True
        self.home_problem = ""
        self.ssh = SshAgent(session, directory, self._before_ssh)
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Connect and listen."""
        vo = self.session.entry.vo
        self.fabric = await self.session.fabric()
        detached = Detached(self.fabric, self.session, self.tickets)
        self.core.commands = Commands(self.core, whoami=self.whoami, detached=detached, ssh_config=self.ssh_config)
        handlers = {"cda": self._cda, "logout": self._logout, "whoami": self._whoami}
        self.ghosts.start(self.directory / f"ghost-{vo}.sock", self.core.launch)  # first: it refuses beside a living agent
        self.server = await rpc.serve_unix(self.directory / f"agent-{vo}.sock", handlers, allowed_uid=os.getuid())
        for kind in ("agent", "ghost"):
            _point(self.directory / f"{kind}.sock", f"{kind}-{vo}.sock")
        await self.ssh.start()
        self.session.on_renewed = self._renewed
        self.session.keep()
        self._spawn(self.session.renew_for_ever(), "renew")
        if self.local.name:  # the home is mounted here before the first command
            self.pool.know(self.local.name, "127.0.0.1", RPC_PORT)
            self.home_problem = await self._mount_home(self.local.name)
        self._spawn(self.pool.warm(), "warm")

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("task %s failed", task.get_name(), exc_info=task.exception())
            self._stop.set()

    async def main(self) -> None:
        """Serve until log-out, SIGTERM, or the end of the session."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # the terminal that logged in may go away
        await self._stop.wait()
        await self.ghosts.close()
        await self.server.close()
        await self.ssh.close()
        await self.pool.close()
        self.local.close()
        await self.fabric.close()
        self._leave_sockets()

    def _leave_sockets(self) -> None:
        if self._named:
            self._named = False  # a later log-in's agent may have the names by now
            for kind in ("agent", "ghost"):
                (self.directory / f"{kind}-{self.session.entry.vo}.sock").unlink(missing_ok=True)

    def _leave_default(self) -> None:
        """After a log-out: the default VO is another one with an agent, or there is none; a dead agent leaves the links to its successor."""
        for kind in ("agent", "ghost"):
            link = self.directory / f"{kind}.sock"
            if not link.is_symlink() or link.readlink().name != f"{kind}-{self.session.entry.vo}.sock":
                continue
            others = sorted(self.directory.glob(f"{kind}-*.sock"))
            if others:
                _point(link, others[0].name)
            else:
                link.unlink(missing_ok=True)

    async def _renewed(self) -> None:
        self.fabric.renew()
        self.ssh.write_known_hosts()
        await self.pool.tell_all()

    async def _mount_home(self, node: str) -> str:
        """Mount the home on this machine; return what is wrong, if something is."""
        try:
            await self.tickets.mount_home(node, await self.pool.peer(node))
        except XosError as error:
            log.warning("the home is not mounted here: %s", error)
            return error.line()
        return ""

    async def _before_ssh(self, node: str) -> None:
        """A log-in by ssh begins: the node must have the ticket for the user's files before the shell starts."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICKET_S):
                try:
                    await self.pool.peer(node)
                except XosError as error:
                    log.info("ssh to %s: no ticket for files is there: %s", node, error)

    async def _gather(self, where: str, wanted: int, wait_s: float) -> list[dict[str, Any]]:
        """Ask the nodes; returns as soon as `wanted` or all members of the VO have answered, or after `wait_s`."""
        if not self.fabric.state.connected and REFUSED in self.fabric.state.reason:
            raise PermissionRefused(
                f"your session is not valid in VO {self.session.entry.vo} any more", "log in again: xos login USER@VO"
            )
        end = time.monotonic() + wait_s
        inbox = f"{self.fabric.settings.inbox}.g{secrets.token_hex(8)}"
        heard = await self.fabric.listen(inbox)
        found: list[dict[str, Any]] = []
        try:
            await self.fabric.publish(subjects.nodes("query"), msgspec.msgpack.encode({"where": where, "all": True}), reply=inbox)
            missing = wanted
            while missing > 0:
                message = await heard.next(max(0.0, end - time.monotonic()))
                if message is not None and message.data:
                    found.append(msgspec.msgpack.decode(message.data))
                    missing = min(wanted, found[-1]["members"]) - len(found)
        except TimeoutError:
            log.debug("not all nodes answered in time")
        finally:
            await heard.close()
        if not found:
            raise NodesSilent("no node of the VO answers", "is this machine cut off? see `xos status`")
        return [one["candidate"] for one in found if "candidate" in one]

    async def _resume(self, token: str, hello: Hello) -> Run:
        commands: Commands = self.core.commands
        return await commands.resume(token, hello)

    def whoami(self) -> dict[str, Any]:
        """Say who this session is."""
        credentials = self.session.credentials
        return {
            "user": credentials.name,
            "vo": credentials.vo,
            "sid": credentials.sid,
            "roles": list(credentials.roles),
            "expires_at": credentials.expires_at,
            "ends_at": credentials.ends_at,
        }

    async def ssh_config(self) -> str:
        """Return what `xos ssh-config` prints."""
        return await self.ssh.configuration(self.pool, self.session.cda)

    # -- the command line's socket ---------------------------------------------------------------------------------------

    async def _cda(self, call: ServerCall) -> Any:
        method = str(call.params.get("method", ""))
        if method in ("login", "renew", "join_node", "challenge", "logout"):
            raise UsageError(f"{method} is not made through the agent")
        return await self.session.cda.call(method, call.params.get("params") or {})

    async def _whoami(self, _call: ServerCall) -> Any:
        return self.whoami()

    async def _logout(self, _call: ServerCall) -> Any:
        revoked = True
        try:
            await self.session.cda.call("logout", {})
        except XosError as error:
            log.warning("log-out: %s", error)
            revoked = False
        self.session.forget()
        self._leave_sockets()  # at once: a command typed behind the log-out must not find a session that ends
        self._leave_default()
        asyncio.get_running_loop().call_later(0.1, self._stop.set)
        return {"vo": self.session.entry.vo, "revoked": revoked}


def _point(link: Path, target: str) -> None:
    temporary = link.with_suffix(f".{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(link)


def prepare_directory() -> Path:
    """Return the folder of the agent's sockets, made 0700; refuses one that is somebody else's."""
    directory = agent_dir()
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    status = directory.lstat()
    if directory.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionRefused(f"{directory} is not a private folder of yours", "remove it, or set XOS_AGENT_DIR")
    return directory


def _answer(body: dict[str, Any]) -> None:
    """Tell the command that started us, and let go of it."""
    sys.stdout.write(json.dumps(body) + "\n")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


async def run(args: argparse.Namespace, password: str) -> None:
    """Log in (or go on from the keyring), answer, serve."""
    directory = prepare_directory()
    log_fd = os.open(directory / f"agent-{args.vo}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log_fd, 2)
    with contextlib.suppress(KeyringFailed):  # without keyrings the session lives as long as this process
        possess_user_keyring()
    try:
        grid = load_grid(args.grid)
        entry = grid.entry(args.vo)
        if args.resume:
            session = kept_session(entry)
            if session is None:
                raise PermissionRefused("no session lies in the keyring", "log in: xos login USER@VO")
        else:
            session = Session(entry, await client_for(entry).login(args.user, password))
        agent = Agent(session, directory, LocalNode(grid.node, args.grid))
        try:
            await agent.start()
        except XosError:
            if not args.resume:  # nobody will hold this session's keys: it must not stay open for its lifetime
                with contextlib.suppress(XosError):
                    await session.cda.call("logout", {})
            raise
    except XosError as error:
        wire = error.to_wire() if not isinstance(error, RemoteError) else error.wire
        _answer({"error": wire})
        return
    except Exception as error:
        log.exception("the agent could not start")
        _answer({"error": InternalError(f"the agent could not start: {type(error).__name__}", f"see {directory}").to_wire()})
        return
    _answer({**agent.whoami(), "home_problem": agent.home_problem, "valid_s": session.credentials.expires_at - time.time()})
    await agent.main()


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="xos-agent")
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--vo", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    password = "" if args.resume else sys.stdin.readline().rstrip("\n")
    uvloop.run(run(args, password))
    return 0


if __name__ == "__main__":
    sys.exit(main())
