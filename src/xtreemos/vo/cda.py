"""The credential distribution authority: who may ask what, each answer audited. The work is in `sessions`, `members`, `machines`.

Any number of CDAs of a VO may run at once (one on every core node): they share the registry and change it by compare-and-set only.
Order of every call: is the method open to this kind of caller -> parameters -> decision -> registry -> audit durable -> answer.
It knows no sockets: `node/` puts `methods()` behind its RPC server.
"""

from __future__ import annotations

import secrets as random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from xtreemos.errors import InternalError, UsageError, XosError
from xtreemos.fabric.caller import Caller, CallerKind
from xtreemos.vo import accepting, heads, machines, members, sessions
from xtreemos.vo.audit import Audit, AuditRecord
from xtreemos.vo.desk import Account, Desk, Method
from xtreemos.vo.errors import NotAllowed, Revoked
from xtreemos.vo.founding import IssuingKeys, VoSecrets
from xtreemos.vo.passwords import Passwords
from xtreemos.vo.registry import Registry

Handler = Callable[[Caller, Any], Awaitable[Any]]
REFUSALS_PER_S_MAX: Final = 50
"""Refusals of strangers that are written one by one; a flood beyond it is counted, so that it cannot fill the disk."""


class BadParams(UsageError):
    """The parameters of a call are not what the method takes; nothing was done."""

    code = "bad-params"


class Cda:
    """The CDA of one VO on one node. `methods()` is its whole surface."""

    def __init__(
        self,
        registry: Registry,
        secrets: VoSecrets,
        clock: Callable[[], float] = time.time,
        rng: Callable[[int], bytes] = random.token_bytes,
        *,
        audit: Audit,
        passwords: Passwords | None = None,
        account: Account | None = None,
        endpoints: tuple[str, ...] = (),
        node_extra: Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Wire one up.

        Args:
            registry: the VO's two buckets.
            secrets: issuing keys.
            clock: seconds since 1970.
            rng: n -> n random bytes.
            audit: of this node.
            passwords: the hasher; made with production parameters if None.
            account: NATS account minter and publisher; None in tests without servers.
            endpoints: where CDAs of the VO answer, written into tokens.
            node_extra: called at joining with (node name, {"core", "addresses", "extra"}); its result is handed to the node.
        """
        self.desk = Desk(
            registry=registry,
            keys=IssuingKeys(secrets),
            clock=clock,
            rng=rng,
            passwords=passwords or Passwords(),
            account=account,
            endpoints=endpoints,
        )
        self.audit = audit
        self._refusals = (0, 0)
        self._table: dict[str, Method] = {
            **sessions.table(self.desk),
            **members.table(self.desk),
            **machines.table(self.desk, node_extra),
            **heads.table(self.desk),
            **accepting.table(self.desk),
        }

    def methods(self) -> dict[str, tuple[frozenset[CallerKind], Handler]]:
        """Return {name: (kinds of caller, handler(caller, params))}; handlers check everything themselves and audit."""
        return {name: (method.kinds, self._handler(name)) for name, method in self._table.items()}

    def _handler(self, name: str) -> Handler:
        async def handle(caller: Caller, params: Any) -> Any:
            return await self.call(name, caller, params)

        return handle

    async def call(self, name: str, caller: Caller, params: Any) -> Any:
        """Carry out one call.

        Raises:
            XosError: refused or failed; it stands in the audit. Other exceptions are bugs: audited as `internal` and raised on.
        """
        method = self._table[name]
        subject = ""
        try:
            subject = _subject(params)
            self._admit(method, caller)
            if method.admin and caller.kind == "user":
                await self._still_admin(caller)
            result = await method.run(caller, _convert(params, method.params))
        except XosError as error:
            self._note_refusal(caller, name, subject, error)
            raise
        except Exception as error:
            self._note_refusal(caller, name, subject, InternalError(type(error).__name__))
            raise
        if method.audited:
            await self.audit.write(self._record(caller, name, subject, allowed=True, why=""))
        return result

    def _admit(self, method: Method, caller: Caller) -> None:
        if caller.kind not in method.kinds and "anonymous" not in method.kinds:
            raise NotAllowed(f"{caller} may not ask for this", "log in first: `xos login USER@VO`")
        if caller.kind in ("user", "node") and caller.vo != self.desk.vo:
            raise NotAllowed(f"{caller} is not of VO {self.desk.vo}")
        if caller.kind == "local" and caller.uid != 0:
            raise NotAllowed("only root of this machine may ask for this")
        if method.admin and caller.kind == "user" and "admin" not in caller.roles:
            raise NotAllowed(f"{caller} is not an administrator of VO {self.desk.vo}", "log in with the role admin, or ask one")

    async def _still_admin(self, caller: Caller) -> None:
        """A certificate may be 12 h old; what an administrator changes is checked against the registry itself."""
        user = await self.desk.registry.users.get(caller.name)
        if user is None or user.record.state != "active" or "admin" not in user.record.roles:
            raise NotAllowed(f"{caller} is no longer an administrator of VO {self.desk.vo}")
        if await self.desk.registry.sessions(caller.name).get(caller.sid) is None:
            raise Revoked("the session is over")

    def _record(self, caller: Caller, name: str, subject: str, *, allowed: bool, why: str) -> AuditRecord:
        detail: dict[str, str | int | bool] = {"address": caller.address} if caller.address else {}
        if subject:
            detail["subject"] = subject
        if caller.sid:
            detail["sid"] = caller.sid
        return AuditRecord(
            at=self.desk.now(), vo=self.desk.vo, who=str(caller), what=f"cda.{name}", allowed=allowed, why=why, detail=detail
        )

    def _note_refusal(self, caller: Caller, name: str, subject: str, error: XosError) -> None:
        """Write why not. Not waited for: it protects nobody that the disk has it, and strangers must not make us flush."""
        now = self.desk.now()
        second, count = self._refusals
        self._refusals = (now, count + 1) if second == now else (now, 1)
        if self._refusals[1] > REFUSALS_PER_S_MAX and caller.kind == "anonymous":
            return
        skipped = f"; {count - REFUSALS_PER_S_MAX} more were not written" if second != now and count > REFUSALS_PER_S_MAX else ""
        why = f"{error.code}: {error.message}{skipped}"
        self.audit.append(self._record(caller, name, subject, allowed=False, why=why))


def _subject(params: Any) -> str:
    """Whom the call is about, for the audit: cut short and printable, since strangers choose it."""
    if not isinstance(params, Mapping):
        return ""
    found = next((params[key] for key in ("user", "node", "sid") if isinstance(params.get(key), str)), "")
    return found[:64].encode("ascii", "backslashreplace").decode()


def _convert(params: Any, kind: type[msgspec.Struct]) -> Any:
    try:
        return msgspec.convert(params if params is not None else {}, kind)
    except msgspec.ValidationError as error:
        raise BadParams(f"bad parameters: {error}", "this may be a version difference; see the protocol page") from error
