"""How the messages of `protocol` travel in calls of `fabric.rpc`: the one place that says so, for clients and servers alike.

A CALL's params are the map `{"m": MESSAGE}` with the message as its MessagePack array (and `"once": ONCE` beside it for a change); RESULT and EVENT bodies are the answer's array
itself (msgspec encodes structs as they are, so neither side makes lists to send). What arrives is checked against the type once.
"""

from __future__ import annotations

import errno
from typing import Any, TypeVar

import msgspec

from xtreemos.xtreemfs.errors import FsError
from xtreemos.xtreemfs.protocol import Once

M = TypeVar("M")
_KEY = "m"
_ONCE = "once"


def params(message: msgspec.Struct, once: Once | None = None) -> dict[str, Any]:
    """Return what `Peer.call` and `Peer.open` take as params for this message; with `once` for a change that may be sent again."""
    return {_KEY: message} if once is None else {_KEY: message, _ONCE: once}


def message_of(params: dict[str, Any], kind: type[M]) -> M:
    """Return the message in a call's params.

    Raises:
        FsError(EINVAL): it is no such message. The caller's fault; nothing was done.
    """
    try:
        return msgspec.convert(params.get(_KEY), kind)
    except msgspec.ValidationError as error:
        raise FsError(errno.EINVAL, f"that is no {getattr(kind, '__name__', 'message')}: {error}") from error


def once_of(params: dict[str, Any]) -> Once | None:
    """Return what a call's params say about its being sent again, None if nothing. FsError(EINVAL): that cannot be read."""
    found = params.get(_ONCE)
    if found is None:
        return None
    try:
        return msgspec.convert(found, Once)
    except msgspec.ValidationError as error:
        raise FsError(errno.EINVAL, f"that is no number of a change: {error}") from error


def answer_of(body: Any, kind: type[M]) -> M:
    """Return the typed answer in the body of a RESULT or EVENT; `kind` may be a union of tagged structs.

    Raises:
        FsError(EIO): the peer sent something else.
    """
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise FsError(errno.EIO, f"the server's answer cannot be read: {error}") from error
