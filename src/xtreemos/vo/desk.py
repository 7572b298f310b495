"""What the CDA's method modules share: keys, registry, clock; revoking and publishing; and the shape of a row of its table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from xtreemos.fabric.caller import Caller, CallerKind
from xtreemos.vo.credentials import Issuer
from xtreemos.vo.errors import TooManyAttempts
from xtreemos.vo.founding import IssuingKeys
from xtreemos.vo.model import CREDENTIAL_S_MAX, FOR_EVER, ISSUES_MAX, SKEW_S, Issue, Revocation
from xtreemos.vo.passwords import Attempts, Passwords
from xtreemos.vo.registry import AccountState, Registry
from xtreemos.vo.revocation import nats_revocations, subject_key

USER_FREE_ATTEMPTS: Final = 10
ADDRESS_FREE_ATTEMPTS: Final = 50


class Account(Protocol):
    """How the VO's NATS account follows revocations; given by `node/`, which holds the operator's signing key."""

    def mint(self, revocations: Mapping[str, int], issued_at: int) -> str:
        """Make the account JWT with these user keys void (key -> time)."""
        ...

    async def publish(self, jwt: str) -> None:
        """Bring it to the servers' resolvers; idempotent; raises Unreachable."""
        ...


@dataclass(frozen=True)
class Method:
    """One row of the table: who may call (`admin` among `roles` narrows users), what it takes, what does it.

    `audited` False is for what decides nothing; its refusals are still written.
    """

    kinds: frozenset[CallerKind]
    params: type[msgspec.Struct]
    run: Callable[[Caller, Any], Awaitable[Any]]
    admin: bool = False
    audited: bool = True


@dataclass
class Desk:
    """What the method modules share: keys, registry, clock, randomness. One per CDA instance."""

    registry: Registry
    keys: IssuingKeys
    clock: Callable[[], float]
    rng: Callable[[int], bytes]
    passwords: Passwords
    account: Account | None = None
    endpoints: tuple[str, ...] = ()
    user_attempts: Attempts = field(default_factory=lambda: Attempts(free=USER_FREE_ATTEMPTS))
    address_attempts: Attempts = field(default_factory=lambda: Attempts(free=ADDRESS_FREE_ATTEMPTS))

    def __post_init__(self) -> None:
        self.vo = self.keys.secrets.vo
        self.issuer = Issuer(self.keys)

    def now(self) -> int:
        """Whole seconds since 1970."""
        return int(self.clock())

    def serial(self) -> int:
        """A fresh serial for certificates, 62 random bits, never 0."""
        return int.from_bytes(self.rng(8), "big") >> 2 | 1

    async def revoke(self, key: str, issues: tuple[Issue, ...], who: str) -> None:
        """Withdraw credentials by a registry key, and their NATS keys from the account."""
        now = self.now()
        live = [issue for issue in issues if now < issue.expires_at]
        until = max([now + SKEW_S, *(issue.expires_at for issue in live)])
        await self.registry.revoke(
            key,
            Revocation(
                at=now,
                until=until,
                who=who,
                serials=tuple(sorted(issue.serial for issue in live)),
                nats_keys=tuple(sorted(issue.nats_key for issue in live)),
            ),
            now,
        )

    async def revoke_user(self, name: str, who: str, *, standing: bool) -> None:
        """Void all that a user was ever issued; with `standing` all that anybody will issue, until called without."""
        now = self.now()
        until = FOR_EVER if standing else now + CREDENTIAL_S_MAX + SKEW_S
        revocation = Revocation(at=now, until=until, standing=standing, who=who)
        await self.registry.revoke(subject_key("user", name), revocation, now)

    async def publish_account(self) -> None:
        """Make the account JWT say what the registry says, and publish it.

        Two CDAs may do so at once: the JWT is decided by compare-and-set in the registry, and whoever published looks again
        whether his was the last; so the newest one is always published after every older one.
        """
        account = self.account
        while account is not None:
            now = self.now()
            wanted = nats_revocations(await self.registry.revocations(), now)
            version = self.keys.trust.document.version
            minted = AccountState(jwt=account.mint(wanted, now), revocations=wanted, version=version)
            state = await self.registry.account.change("jwt", minted.unless_same)
            await account.publish(state.jwt)
            latest = await self.registry.account.get("jwt")
            if latest and latest.record.jwt == state.jwt:
                return


def kinds(*names: CallerKind) -> frozenset[CallerKind]:
    """Write a row's callers; `anonymous` stands for everybody."""
    return frozenset(names)


def add_issue(issues: tuple[Issue, ...], new: Issue, now: int) -> tuple[Issue, ...]:
    """Note what was issued, forgetting what has expired; raises TooManyAttempts for a client renewing in a loop."""
    live = tuple(issue for issue in issues if now < issue.expires_at)
    if len(live) >= ISSUES_MAX:
        raise TooManyAttempts("too many renewals of this session", "keep the credentials until they are half used up")
    return (*live, new)
