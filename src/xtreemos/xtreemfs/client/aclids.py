"""Owners and access control lists between a node and the VO: the kernel checks local uids and gids, the MRC keeps principals.

A name that this node does not know is shown as nobody's; an entry for somebody who is no member of the VO is refused.
"""

from __future__ import annotations

import errno
from typing import Literal

from xtreemos.xtreemfs import protocol
from xtreemos.xtreemfs.client.actors import Identities
from xtreemos.xtreemfs.client.session import Session
from xtreemos.xtreemfs.fuse import acl
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.model import FIRST_PRINCIPAL, Principal

_KINDS: dict[int, Literal["u", "g"]] = {acl.USER: "u", acl.GROUP: "g"}


async def to_local(session: Session, value: bytes) -> bytes:
    """Return a list as the kernel of this node is to see it: without entries for people who have no account here."""
    rows = acl.decode(value)
    principals = session.principals
    named = [(tag, ident) for tag, _perm, ident in rows if tag in _KINDS]
    unknown = tuple(sorted({ident for _tag, ident in named if ident >= FIRST_PRINCIPAL and principals.missing(ident, ident)}))
    if unknown:
        found = await session.link.call("mrc.names", protocol.Names(unknown), tuple[Principal, ...])
        principals.learn(unknown, found)
    shown: list[acl.Row] = []
    seen: set[tuple[int, int]] = set()
    for tag, perm, ident in rows:
        if tag in _KINDS:
            ident = principals.local(_KINDS[tag], ident)  # noqa: PLW2901  # the same row with the id of this node
            if (tag, ident) in seen:
                continue  # several strangers are all nobody here
            seen.add((tag, ident))
        shown.append((tag, perm, ident))
    return acl.encode(acl.make(shown))


async def to_numbers(session: Session, identities: Identities, value: bytes) -> bytes:
    """Return a list as the MRC keeps it. FuseError(EINVAL): it is none, or it names somebody who is no member of the VO."""
    try:
        rows = acl.decode(value)
    except ValueError:
        raise FuseError(errno.EINVAL) from None
    return acl.encode(acl.make([(tag, perm, await _kept(session, identities, tag, ident)) for tag, perm, ident in rows]))


async def _kept(session: Session, identities: Identities, tag: int, ident: int) -> int:
    kind = _KINDS.get(tag)
    number = ident if kind is None else await number_of(session, identities, kind, ident)
    if number is None:
        raise FuseError(errno.EINVAL)
    return number


async def number_of(session: Session, identities: Identities, kind: Literal["u", "g"], local: int) -> int | None:
    """Return the VO's number for a local id, asked for if need be; None if it is nobody's in the VO."""
    number = session.principals.number(kind, local)
    if number is not None:
        return number
    whose: tuple[Literal["u", "g"], ...] = ("g", "u") if kind == "g" else ("u",)  # a user's own group has the user's number
    for one in whose:
        name = identities.name_of(one, local)
        if name is not None:
            (number,) = await session.link.call("mrc.numbers", protocol.Numbers(((one, name),)), tuple[int, ...])
            if number < 0:
                return None
            session.principals.learn((number,), (Principal(one, number, name),))
            return number
    return None
