"""Answers to changes, kept until the client has heard them: a change that is sent again has effect once. Pure functions of the state.

A client numbers the changes of a session and sends each again, with the same number, until it is answered. Command, number and answer
go into the store together, so whatever became of the server in between, the number tells whether the change was done. An answer is kept
until the client says that it needs it no more (`below`) or the session ends; what is below that or of another life of the session is
refused and never done: it is a straggler.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.errors import ChangeUnknown
from xtreemos.xtreemfs.mrc.model import Inode, Reply
from xtreemos.xtreemfs.mrc.state import State

CHANGES_MAX: Final = 16_384
"""Changes of one session that are under way, counted from the oldest; so many answers are kept at most, 150 bytes each."""


def find(state: State, session: str, life: int, number: int) -> Reply | None:
    """Return what a change has answered, None if it was not done.

    Raises:
        ChangeUnknown: it cannot be known, for the session is another one by now, or the client has said that it needs no answer.
    """
    held = state.session(session)
    if held is None or held.life != life or number < state.answered_below(session):
        raise ChangeUnknown("it is not known whether this was done: the session has ended in between", "look what is there")
    return state.find_reply(session, number)


def admit(state: State, c: do.Once) -> None:
    """Check that a change may be done, and forget the answers that the client has heard.

    Raises:
        ChangeUnknown: see `find`. FsError: EEXIST, it was done; EAGAIN, too many are under way; EINVAL.
    """
    if find(state, c.session, c.life, c.number) is not None:
        raise FsError(errno.EEXIST, "this change was done")
    if not 0 < c.below <= c.number:
        raise FsError(errno.EINVAL, "that is no number of a change")
    if c.number >= c.below + CHANGES_MAX:
        raise FsError(errno.EAGAIN, "too many changes of this client are under way")
    state.forget_replies(c.session, c.below, CHANGES_MAX)


def keep(state: State, c: do.Once, result: Any) -> None:
    """Keep what a change answers: the attributes in its result."""
    rows: tuple[Inode | None, ...] = (result,) if isinstance(result, Inode) else tuple(result)
    state.put_reply(c.session, c.number, Reply(tuple(row.attr() for row in rows if row is not None)))
