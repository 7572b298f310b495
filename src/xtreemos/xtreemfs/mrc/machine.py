"""The MRC's deterministic machine: `apply(kv, seq, command)` is the only way to change its state.

It is a pure function of the ordered store and the command: applied again to the same state it does the same, which is what recovery
from the log rests on, and what a replicated group would. A refused command (FsError) changes nothing and is not logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from xtreemos.xtreemfs.mrc import attributes, namespace, quota, replies, schema, volumes
from xtreemos.xtreemfs.mrc import commands as do
from xtreemos.xtreemfs.mrc.kv import Kv, Overlay
from xtreemos.xtreemfs.mrc.state import Change, State

_HANDLERS: Final[dict[type[do.Command], Callable[[State, Any], Any]]] = {
    do.Create: namespace.create,
    do.Link: namespace.link,
    do.Unlink: namespace.unlink,
    do.Rename: namespace.rename,
    do.SetAttr: attributes.set_attr,
    do.Update: attributes.update,
    do.SetXattr: attributes.set_xattr,
    do.RemoveXattr: attributes.remove_xattr,
    do.Free: volumes.free,
    do.Writer: volumes.writer,
    do.WritersDone: volumes.writers_done,
    do.OpenSession: volumes.open_session,
    do.CloseSession: volumes.close_session,
    do.Epochs: volumes.epochs,
    do.Principals: volumes.principals,
    do.MakeVolume: volumes.make_volume,
    do.VolumeTold: volumes.volume_told,
    do.RemoveVolume: volumes.remove_volume,
    do.Purge: volumes.purge,
    do.Deleted: volumes.deleted,
    do.SetQuota: volumes.set_quota,
    do.Promise: quota.promise,
    do.SetShare: volumes.set_share,
}


class Outcome(NamedTuple):
    """What a command answers (see its function), and what changed for those who follow a volume."""

    result: Any
    changes: list[Change]


def apply(kv: Kv, seq: int, command: do.Command) -> Outcome:
    """Carry out command number `seq` (one more than the last).

    Raises:
        FsError, ChangeUnknown: refused; the store is as it was. Moved: its holders must be asked again (see `namespace`); likewise.
    """
    overlay = Overlay(kv)
    state = State(overlay, seq)
    if isinstance(command, do.Once):
        replies.admit(state, command)
        result = _HANDLERS[type(command.change)](state, command.change)
        replies.keep(state, command, result)
    else:
        result = _HANDLERS[type(command)](state, command)
    overlay.put(schema.SEQ, schema.pack64(seq))
    overlay.flush()
    return Outcome(result, state.changes)


def last_seq(kv: Kv) -> int:
    """Return the number of the last command that was applied, 0 if none."""
    return schema.unpack64(kv.get(schema.SEQ) or bytes(8))
