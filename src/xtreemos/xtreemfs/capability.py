"""Capabilities and session tokens: what an MRC signs so that an OSD can decide by itself, without asking anybody.

A capability says what one client may do with the bytes of one file; a session token says that the MRC has heard of that client lately.
Both are needed: the token is renewed every few seconds and its lapse voids all capabilities of the client at once, so that these can
live for hours. Form of a record: 64 bytes of Ed25519 signature, then the MessagePack array; what is signed is a text of its own per
kind before the array, so that one can never pass for the other. The key is named by the record's `mrc` and comes from the directory.

Verifying costs about 80 us, so `Verifier` remembers records by their bytes. Times are judged anew at every use. Pure: the clock's
reading and the keys come in. Libsodium (PyNaCl) verifies twice as fast as OpenSSL here.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.exceptions import ValueError as NaclValueError
from nacl.signing import SigningKey, VerifyKey

from xtreemos.xtreemfs.errors import CapabilityRefused, FsError, SignerUnknown
from xtreemos.xtreemfs.model import Capability, SessionToken

CAPABILITY_DOMAIN = b"xos-capability-v1|"
SESSION_DOMAIN = b"xos-client-session-v1|"
SIGNATURE_BYTES = 64
KEY_BYTES = 32
RECORD_BYTES_MAX = 2048
VERIFIED_MAX = 16384
"""Records remembered by one verifier, about 700 bytes each."""

Keys = Callable[[str], Sequence[bytes]]
"""MRC's node name -> its raw public keys, the newest first; empty if the directory has no such MRC (yet)."""

Signed = TypeVar("Signed", Capability, SessionToken)


class Fence(msgspec.Struct, frozen=True, array_like=True):
    """What an OSD remembers of one inode: no writes below `epoch`, nothing at all below `layout_version`."""

    epoch: int = 0
    layout_version: int = 0


class Signer:
    """An MRC's key. Make it from 32 random bytes that only this MRC knows."""

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.public: bytes = self._key.verify_key.encode()
        """Raw public key, for `MrcRecord.keys`."""

    def capability(self, value: Capability) -> bytes:
        """Return the signed record of a capability."""
        return self._sign(CAPABILITY_DOMAIN, value)

    def session(self, value: SessionToken) -> bytes:
        """Return the signed record of a session token."""
        return self._sign(SESSION_DOMAIN, value)

    def _sign(self, domain: bytes, value: Capability | SessionToken) -> bytes:
        body = msgspec.msgpack.encode(value)
        return self._key.sign(domain + body).signature + body


class Verifier:
    """Tells whether records were signed by an MRC of one VO; remembers those that were, by their bytes.

    Call `forget` when the directory's keys change: a key that was withdrawn must not live on in what was verified with it.
    """

    def __init__(self, vo: str, keys: Keys) -> None:
        self._vo = vo
        self._keys = keys
        self._capabilities: OrderedDict[bytes, Capability] = OrderedDict()
        self._sessions: OrderedDict[bytes, SessionToken] = OrderedDict()

    def forget(self) -> None:
        """Verify everything anew from now on."""
        self._capabilities.clear()
        self._sessions.clear()

    def capability(self, record: bytes) -> Capability:
        """Return the capability in a record.

        Raises:
            CapabilityRefused: it is forged, changed, of another VO, or of an MRC that the directory does not know. Definite.
        """
        found = self._capabilities.get(record)
        if found is None:
            found = self._open(record, CAPABILITY_DOMAIN, Capability)
            _keep(self._capabilities, record, found)
        return found

    def session(self, record: bytes) -> SessionToken:
        """Return the session token in a record. Raises as `capability` does."""
        found = self._sessions.get(record)
        if found is None:
            found = self._open(record, SESSION_DOMAIN, SessionToken)
            _keep(self._sessions, record, found)
        return found

    def _open(self, record: bytes, domain: bytes, kind: type[Signed]) -> Signed:
        what = "capability" if kind is Capability else "session token"
        if not SIGNATURE_BYTES < len(record) <= RECORD_BYTES_MAX:
            raise CapabilityRefused(f"the {what} has {len(record)} bytes")
        signature, body = record[:SIGNATURE_BYTES], record[SIGNATURE_BYTES:]
        try:
            value = msgspec.msgpack.decode(body, type=kind)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CapabilityRefused(f"the {what} cannot be read") from error
        if value.vo != self._vo:
            raise CapabilityRefused(f"the {what} is of VO {value.vo[:64]}, not {self._vo}")
        keys = self._keys(value.mrc)
        if not keys:
            raise SignerUnknown(f"the {what} is signed by {value.mrc[:64]}, which is no known MRC of this VO", "try again soon")
        if not any(_signed_by(key, signature, domain + body) for key in keys):
            raise CapabilityRefused(f"the {what} was not signed by the MRC on {value.mrc}, or was changed afterwards")
        return value


def _keep(cache: OrderedDict[bytes, Signed], record: bytes, value: Signed) -> None:
    cache[record] = value
    while len(cache) > VERIFIED_MAX:  # the oldest first; one still in use costs a verification
        cache.popitem(last=False)


def _signed_by(key: bytes, signature: bytes, text: bytes) -> bool:
    try:
        VerifyKey(key).verify(text, signature)
    except (BadSignatureError, NaclValueError):
        return False
    return True


def check_rights(capability: Capability, session: SessionToken, *, node: str | None, now_s: float, write: bool) -> None:
    """Judge two verified records against who shows them, when, and for what.

    Args:
        capability: what was verified.
        session: likewise.
        node: the node that shows them, as TLS proved; None where there is nothing but one machine, so nothing to compare with.
        now_s: seconds since 1970.
        write: whether bytes are to be changed.

    Raises:
        CapabilityRefused: another node's, another client's, expired, or it allows reading only. Definite.
    """
    if node is not None and (capability.node != node or session.node != node):
        other = capability.node if capability.node != node else session.node
        raise CapabilityRefused(f"the capability was given to node {other[:64] or '(none)'}, not to {node}")
    if (capability.client, capability.mrc) != (session.client, session.mrc):
        raise CapabilityRefused("the session token is another client's")
    if now_s * 1000 >= session.expires_at_ms:
        late_ms = int(now_s * 1000) - session.expires_at_ms
        raise CapabilityRefused(f"the client's session ended {late_ms} ms ago", "if this goes on: do the nodes' clocks agree?")
    if now_s >= capability.expires_at:
        raise CapabilityRefused("the capability has expired", "ask the MRC for a new one")
    if write and capability.mode != "w":
        raise CapabilityRefused("the capability is for reading only")


def check_fence(capability: Capability, fence: Fence, *, write: bool) -> None:
    """Judge a capability against what the OSD remembers of the file.

    Raises:
        FsError(ESTALE): the file was given to a newer writer, or its layout has changed. Definite.
    """
    if capability.layout_version < fence.layout_version:
        raise FsError(
            errno.ESTALE,
            f"layout {capability.layout_version} of the file was replaced by {fence.layout_version}",
            "ask the MRC again",
        )
    if write and capability.epoch < fence.epoch:
        raise FsError(
            errno.ESTALE,
            f"epoch {capability.epoch} of the file was ended by {fence.epoch}: another client writes it",
            "ask the MRC again",
        )
