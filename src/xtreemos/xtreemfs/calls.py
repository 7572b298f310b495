"""How the messages of `protocol` travel in calls of `fabric.rpc`: the one place that says so, for clients and servers alike.

A CALL's params are the map `{"m": MESSAGE}` with the message as its MessagePack array; RESULT and EVENT bodies are the answer's array
itself (msgspec encodes structs as they are, so neither side makes lists to send). What arrives is checked against the type once.
"""

from __future__ import annotations

import errno
from typing import Any, TypeVar

import msgspec

from xtreemos.xtreemfs.errors import FsError

M = TypeVar("M")
_KEY = "m"


def params(message: msgspec.Struct) -> dict[str, Any]:
    """Return what `Peer.call` and `Peer.open` take as params for this message."""
    return {_KEY: message}


def message_of(params: dict[str, Any], kind: type[M]) -> M:
    """Return the message in a call's params.

    Raises:
        FsError(EINVAL): it is no such message. The caller's fault; nothing was done.
    """
    try:
        return msgspec.convert(params.get(_KEY), kind)
    except msgspec.ValidationError as error:
        raise FsError(errno.EINVAL, f"that is no {getattr(kind, '__name__', 'message')}: {error}") from error


def answer_of(body: Any, kind: type[M]) -> M:
    """Return the typed answer in the body of a RESULT or EVENT; `kind` may be a union of tagged structs.

    Raises:
        FsError(EIO): the peer sent something else.
    """
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise FsError(errno.EIO, f"the server's answer cannot be read: {error}") from error
