"""What the node answers to sshd and to the front of ssh sessions (native/sshfront.c), on RUN/ssh.sock.

Who asks is known by the kernel (SO_PEERCRED): sshd's helper runs as sshd's own account, the front as the grid user's uid. A log-in
is judged by `Admission`, the same verifier as everywhere (revocations, audit), and judged once more when a program starts: a
connection may have been open for long. The program is a job like any other: same policy, slots, sandbox, listing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import pwd
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from xtreemos.aem.jobspec import JobSpec, Winsize
from xtreemos.errors import PermissionRefused, UsageError, XosError
from xtreemos.fabric.caller import Caller
from xtreemos.fabric.rpc import Handler, ServerCall
from xtreemos.foundation.accounts import Account, Accounts
from xtreemos.foundation.frames import Kind
from xtreemos.names import job_id, unix_name
from xtreemos.node.jobs import LocalJobs, ensure_home
from xtreemos.node.running import Running
from xtreemos.node.service import NotForYou
from xtreemos.node.sshd import SHELL_IN_SANDBOX, SshDoors, command_user
from xtreemos.vo.admission import ADDRESS_MAX, Admission
from xtreemos.vo.audit import Audit, AuditRecord
from xtreemos.vo.errors import BadCredential
from xtreemos.vo.ssh import key_blob, parse

log = logging.getLogger(__name__)

CERTIFICATE_TYPE: Final = "ssh-ed25519-cert-v01@openssh.com"
SAME_REFUSAL_S: Final = 5.0  # sshd asks two or three times about one certificate: one line in the audit
REFUSALS_MAX: Final = 1024
_NS_GET_NSTYPE: Final = 0xB703
_CLONE_NEWNET: Final = 0x40000000
SIGNAL_MAX: Final = 64


class Vo(Protocol):
    """What we use of a VO's runtime."""

    @property
    def admission(self) -> Admission: ...
    @property
    def audit(self) -> Audit: ...


class SshLogins:
    """Handlers of `ssh.*`."""

    def __init__(
        self,
        *,
        jobs: LocalJobs,
        accounts: Accounts,
        vos: Mapping[str, Vo],
        doors: SshDoors,
        make_place: Callable[[str, str, int], object] = ensure_home,
    ) -> None:
        self._jobs = jobs
        self._make_place = make_place
        self._accounts = accounts
        self._vos = vos
        self._doors = doors
        self._refused: dict[bytes, float] = {}
        self._own_network = os.stat("/proc/self/ns/net")

    def methods(self) -> dict[str, Handler]:
        """Return the table of the front's socket; every local process may connect, so each handler looks at the uid."""
        return {"ssh.principals": self.principals, "ssh.keys": self.keys, "ssh.start": self.start, "ssh.again": self.again}

    # -- sshd's questions ------------------------------------------------------------------------------------------------

    async def principals(self, call: ServerCall) -> Any:
        """Answer `{lines}`: the principal that sshd is to accept, or none. May be asked several times per log-in."""
        self._only_sshd(call)
        user, line = str(call.params.get("user", "")), _line(call)
        pid = int(call.params.get("pid") or 0)
        connection = self._doors.connections.get(pid)
        caller = await self._judge(user, line, connection.address if connection else "")
        if caller is None:
            return {"lines": []}
        uid = self._accounts.uid_for(caller.name, caller.vo)
        self._make_place(caller.name, caller.vo, uid)  # sshd steps into it before it starts our front
        self._doors.admitted(pid, caller.name, caller.sid)
        return {"lines": [unix_name(caller.name, caller.vo)]}

    async def keys(self, call: ServerCall) -> Any:
        """Answer nothing, ever: no plain key opens an account. What sshd itself did not trust is judged for the audit."""
        self._only_sshd(call)
        if call.params.get("type") == CERTIFICATE_TYPE:
            user, line = str(call.params.get("user", "")), _line(call)
            caller = await self._judge(user, line, "")
            if caller is not None:
                log.info("ssh: sshd refused %s what we admit (another VO's port?)", caller)
        return {"lines": []}

    def _only_sshd(self, call: ServerCall) -> None:
        if call.caller.uid not in (0, pwd.getpwnam(command_user()).pw_uid):
            raise NotForYou(f"{call.caller} is not sshd")

    async def _judge(self, user: str, line: str, address: str) -> Caller | None:
        key = hashlib.sha256(f"{user}\0{line}".encode()).digest()
        now = time.monotonic()
        if self._refused.get(key, 0.0) > now:
            return None
        vo = self._responsible(user, line)
        if vo is None:
            log.warning("ssh: log-in as %.64r refused: this node serves no such VO", user)
            return None
        try:
            return vo.admission.ssh(line, user, address)
        except BadCredential as error:
            log.info("ssh: log-in as %.64r refused: %s", user, error)
            if len(self._refused) >= REFUSALS_MAX:
                self._refused = {one: until for one, until in self._refused.items() if until > now}
            if len(self._refused) < REFUSALS_MAX:
                self._refused[key] = now + SAME_REFUSAL_S
            return None

    def _responsible(self, user: str, line: str) -> Vo | None:
        """Whose gate judges a log-in: the VO of the account, else the one that the certificate claims, else the first."""
        name = user.rpartition(".")[2]
        if name not in self._vos:
            with contextlib.suppress(BadCredential):
                claimed = parse(key_blob(line)).key_id.split(":")
                name = claimed[1] if len(claimed) > 1 else ""
        return self._vos.get(name) or next(iter(self._vos.values()), None)

    # -- the front's calls -----------------------------------------------------------------------------------------------

    def _account(self, call: ServerCall) -> Account:
        account = self._accounts.by_uid(call.caller.uid or 0)
        if account is None or account.vo not in self._vos:
            raise NotForYou(f"{call.caller} is no user of the grid")
        return account

    async def start(self, call: ServerCall) -> Any:
        """Start a program of an ssh session and stay as its line; answers `{exit}` as jobd's attach does."""
        account = self._account(call)
        vo = self._vos[account.vo]
        address = str((call.params.get("env") or {}).get("SSH_CONNECTION", "")).split(" ")[0][:ADDRESS_MAX]
        caller = vo.admission.ssh(_shown(call), account.unix_name, address)
        terminal = bool(call.params.get("tty"))
        if len(call.fds) != (1 if terminal else 4):
            raise UsageError("an ssh session comes with its streams and its network")
        network = self._network(call.fds[-1])
        spec = _spec(call, account, Winsize(_size(call, "rows"), _size(call, "cols")) if terminal else None)
        what: dict[str, str | int | bool] = {"address": address, "job": spec.job, "tty": terminal}
        await vo.audit.write(
            AuditRecord(at=int(time.time()), vo=account.vo, who=str(caller), what="ssh.open", allowed=True, detail=what)
        )
        running = await self._jobs.run(spec, attempt=1, sid=caller.sid, fds=() if terminal else tuple(call.fds[:3]), netns=network)
        call.send_event({"type": "started", "job": running.job, "attempt": running.attempt})
        if terminal:
            return await self._jobs.attach(running, call, {"offsets": {}})
        return await self._wait(running, call)

    async def again(self, call: ServerCall) -> Any:
        """Join a session's program again: the front lived on while xosd was started anew."""
        account = self._account(call)
        await self._jobs.wait_life()
        job, attempt = str(call.params.get("job", "")), int(call.params.get("attempt") or 1)
        running = self._jobs.find(job, account.vo, account.user, attempt)
        if call.params.get("tty"):
            return await self._jobs.attach(running, call, {"offsets": {"1": int(call.params.get("output") or 0)}, "steal": True})
        return await self._wait(running, call)

    def _network(self, descriptor: int) -> str:
        """Check the network that the front lives in: a connection's own, never the node's."""
        try:
            kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        status = os.fstat(descriptor)
        if kind != _CLONE_NEWNET or (status.st_dev, status.st_ino) == (self._own_network.st_dev, self._own_network.st_ino):
            raise PermissionRefused("this account is for log-ins by ssh with a session's certificate")
        return f"/proc/{os.getpid()}/fd/{descriptor}"

    async def _wait(self, running: Running, call: ServerCall) -> Any:
        """Wait for the end of a program that has the session's own descriptors; signals come as events."""
        running.attached += 1
        signals = asyncio.create_task(self._signals(running, call), name=f"signals {running.key}")
        try:
            while running.exit is None:
                await self._jobs.wait_change()
        finally:
            signals.cancel()
            running.attached -= 1
            running.left_at = time.monotonic()
        await self._jobs.forget(running)
        return {"exit": running.exit}

    async def _signals(self, running: Running, call: ServerCall) -> None:
        while True:
            frame = await call.receive()
            number = frame.body.get("signal") if frame.kind is Kind.EVENT and isinstance(frame.body, dict) else None
            if isinstance(number, int) and 0 < number <= SIGNAL_MAX:
                try:
                    await self._jobs.signal(running, number)
                except XosError as error:
                    log.info("%s: signal %d: %s", running.key, number, error)


def _line(call: ServerCall) -> str:
    return f"{call.params.get('type', '')} {call.params.get('key', '')}"


def _shown(call: ServerCall) -> str:
    """The certificate of the log-in as sshd noted it: a line `publickey TYPE KEY`."""
    for row in str(call.params.get("auth", "")).splitlines():
        method, _space, line = row.partition(" ")
        if method == "publickey" and line.startswith(CERTIFICATE_TYPE):
            return line
    raise PermissionRefused("this account is for log-ins by ssh with a session's certificate")


def _size(call: ServerCall, name: str) -> int:
    value = call.params.get(name)
    return value if isinstance(value, int) and 0 < value < 10_000 else 24


def _spec(call: ServerCall, account: Account, tty: Winsize | None) -> JobSpec:
    command = str(call.params.get("command") or "")
    env = call.params.get("env")
    return JobSpec(
        job=job_id(os.urandom(8)),
        vo=account.vo,
        user=account.user,
        argv=[SHELL_IN_SANDBOX, "-c", command] if command else [SHELL_IN_SANDBOX, "-l"],
        env={str(name): str(value) for name, value in env.items()} if isinstance(env, dict) else {},
        tty=tty,
        submitted_at=time.time(),
    )
