"""OpenSSH certificates of a VO: issuing, our own strict verifier, and key revocation lists.

Ed25519 only. The wire format is read and written here, so that each rule of PROTOCOL.certkeys is ours to enforce: options sorted
and once each, no certificate as signing key, unknown critical options refused. A user certificate has exactly one principal, the
Unix name `alice.demo`; an empty list would mean "anybody" to some servers, a pattern would be worse. It knows no sshd.

Attributes (VO, session id, roles) are extensions, which stock sshd ignores; as critical options stock sshd would refuse them.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from xtreemos import names
from xtreemos.fabric.caller import Caller
from xtreemos.vo.document import Trust
from xtreemos.vo.errors import BadCredential
from xtreemos.vo.model import CREDENTIAL_S_MAX, NODE_CREDENTIAL_S, SKEW_S

_TYPE: Final = b"ssh-ed25519-cert-v01@openssh.com"
_PLAIN: Final = b"ssh-ed25519"
CERTIFICATE_BYTES_MAX: Final = 8192
PRINCIPALS_MAX: Final = 4
PERMITS: Final = ("permit-X11-forwarding", "permit-agent-forwarding", "permit-port-forwarding", "permit-pty")
VO_EXTENSION: Final = "vo@xtreemos.org"
SID_EXTENSION: Final = "sid@xtreemos.org"
ROLES_EXTENSION: Final = "roles@xtreemos.org"
_KEY_ID = re.compile(r"xos:([a-z_][a-z0-9_-]{0,30}):([a-z_][a-z0-9_-]{0,30}):([0-9a-f]{32})")
_ROLES = re.compile(r"([a-z]{1,16}(,[a-z]{1,16}){0,15})?")


def public_line(key: ed25519.Ed25519PublicKey) -> str:
    """Write a public key as `ssh-ed25519 AAAA...`."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def load_public(line: str) -> ed25519.Ed25519PublicKey:
    """Read a plain `ssh-ed25519 AAAA...` line; raises BadCredential for anything else, a certificate included."""
    try:
        kind, encoded = line.split()[:2]
        blob = base64.b64decode(encoded, validate=True)
        reader = _Reader(blob)
        if kind.encode() != _PLAIN or reader.string() != _PLAIN:
            raise ValueError("kind")
        raw = reader.string()
        reader.end()
        return ed25519.Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, struct.error, binascii.Error) as error:
        raise BadCredential("bad public key", "ssh: Ed25519 wanted") from error


def key_blob(line: str) -> bytes:
    """The base64 part of a public key or certificate line, decoded."""
    try:
        return base64.b64decode(line.split()[1], validate=True)
    except (IndexError, binascii.Error) as error:
        raise BadCredential("bad certificate", "not an OpenSSH line") from error


def issue_user(
    ca: ed25519.Ed25519PrivateKey,
    public: ed25519.Ed25519PublicKey,
    *,
    vo: str,
    user: str,
    sid: str,
    serial: int,
    roles: Sequence[str],
    valid_after: int,
    valid_before: int,
) -> str:
    """Issue a session's certificate (OpenSSH line, no comment)."""
    key_id = f"xos:{names.check_vo(vo)}:{names.check_user(user)}:{names.check_sid(sid)}"
    extensions = dict.fromkeys(PERMITS, "")
    extensions |= {VO_EXTENSION: vo, SID_EXTENSION: sid, ROLES_EXTENSION: ",".join(sorted(roles))}
    principals = [names.unix_name(user, vo)]
    return _issue(ca, public, 1, serial, key_id, principals, (valid_after, valid_before), extensions)


def issue_host(
    ca: ed25519.Ed25519PrivateKey,
    public: ed25519.Ed25519PublicKey,
    *,
    vo: str,
    node: str,
    serial: int,
    valid_after: int,
    valid_before: int,
) -> str:
    """Issue a node's host certificate; principals are the node's name and `NODE.VO`."""
    key_id = f"xos-node:{names.check_vo(vo)}:{names.check_node(node)}"
    return _issue(ca, public, 2, serial, key_id, [node, f"{node}.{vo}"], (valid_after, valid_before), {})


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _issue(
    ca: ed25519.Ed25519PrivateKey,
    public: ed25519.Ed25519PublicKey,
    kind: int,
    serial: int,
    key_id: str,
    principals: Sequence[str],
    valid: tuple[int, int],
    extensions: dict[str, str],
) -> str:
    """Pack and sign (PROTOCOL.certkeys). By hand: the library's builder is Python too and takes five times as long."""
    packed = b"".join(
        _string(name.encode()) + _string(_string(value.encode()) if value else b"") for name, value in sorted(extensions.items())
    )
    body = b"".join(
        (
            _string(_TYPE),
            _string(secrets.token_bytes(32)),
            _string(public.public_bytes_raw()),
            struct.pack(">QI", serial, kind),
            _string(key_id.encode("ascii")),
            _string(b"".join(_string(principal.encode("ascii")) for principal in principals)),
            struct.pack(">QQ", *valid),
            _string(b""),  # critical options
            _string(packed),
            _string(b""),  # reserved
            _string(_string(_PLAIN) + _string(ca.public_key().public_bytes_raw())),
        )
    )
    blob = body + _string(_string(_PLAIN) + _string(ca.sign(body)))
    return f"{_TYPE.decode()} {base64.b64encode(blob).decode()}"


class _Reader:
    """Reads SSH wire types; any overrun is a ValueError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError("cut short")
        self.at += count
        return self.data[self.at - count : self.at]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def string(self) -> bytes:
        return self.take(self.u32())

    def end(self) -> None:
        if self.at != len(self.data):
            raise ValueError("bytes left over")


@dataclass(frozen=True, slots=True)
class SshCertificate:
    """A certificate as its wire format says; `parse` checked form and signature, not trust."""

    public: bytes
    serial: int
    kind: Literal["user", "host"]
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical: dict[str, bytes]
    extensions: dict[str, bytes]
    ca: bytes


def parse(blob: bytes) -> SshCertificate:
    """Read a certificate's wire format and check its own signature by the CA key it names.

    Raises:
        BadCredential: form, sorting, key kinds or signature are off.
    """
    try:
        return _parse(blob)
    except (ValueError, UnicodeDecodeError) as error:
        raise BadCredential("bad certificate", str(error) if type(error) is ValueError else "text") from error
    except InvalidSignature as error:
        raise BadCredential("bad signature") from error


def _parse(blob: bytes) -> SshCertificate:
    if len(blob) > CERTIFICATE_BYTES_MAX:
        raise ValueError("too long")
    reader = _Reader(blob)
    if reader.string() != _TYPE:
        raise ValueError("not an Ed25519 certificate")
    reader.string()  # nonce
    public = reader.string()
    serial, kind = reader.u64(), reader.u32()
    if kind not in (1, 2):
        raise ValueError("neither user nor host")
    key_id = reader.string().decode("ascii")
    principals = _principals(reader.string())
    valid_after, valid_before = reader.u64(), reader.u64()
    critical, extensions = _options(reader.string()), _options(reader.string())
    reader.string()  # reserved
    ca = reader.string()
    signed = blob[: reader.at]
    signature = reader.string()
    reader.end()
    _check_signature(ca, signature, signed)
    return SshCertificate(
        public=public,
        serial=serial,
        kind="user" if kind == 1 else "host",
        key_id=key_id,
        principals=principals,
        valid_after=valid_after,
        valid_before=valid_before,
        critical=critical,
        extensions=extensions,
        ca=ca,
    )


def _principals(data: bytes) -> tuple[str, ...]:
    reader, found = _Reader(data), []
    while reader.at < len(data):
        found.append(reader.string().decode("ascii"))
        if len(found) > PRINCIPALS_MAX:
            raise ValueError("too many principals")
    return tuple(found)


def _options(data: bytes) -> dict[str, bytes]:
    reader, found, last = _Reader(data), {}, b""
    while reader.at < len(data):
        name, value = reader.string(), reader.string()
        if name <= last:
            raise ValueError("options unsorted or twice")
        last = name
        inner = _Reader(value)
        found[name.decode("ascii")] = inner.string() if value else b""
        inner.end()
    return found


def _check_signature(ca: bytes, signature: bytes, signed: bytes) -> None:
    key = _Reader(ca)
    if key.string() != _PLAIN:  # a certificate as signing key is Teleport's CVE-2025-49825
        raise ValueError("signing key is not a plain Ed25519 key")
    raw = key.string()
    key.end()
    parts = _Reader(signature)
    if parts.string() != _PLAIN:
        raise ValueError("signature is not Ed25519")
    value = parts.string()
    parts.end()
    ed25519.Ed25519PublicKey.from_public_bytes(raw).verify(value, signed)


def verify_ssh_user(line: str, trust: Trust, now: int) -> tuple[Caller, int]:
    """Check a session's certificate against one VO.

    Returns:
        The caller and when the certificate was issued (for revocation by time).

    Raises:
        BadCredential: with the reason. Revocation is not looked at here; see `revocation`.
    """
    certificate = parse(key_blob(line))
    _check_trust(certificate, "user", trust.document.ssh_user_ca, now, CREDENTIAL_S_MAX)
    match = _KEY_ID.fullmatch(certificate.key_id)
    if not match:
        raise BadCredential("bad name", "key id")
    vo, user, sid = match.groups()
    extensions = certificate.extensions
    if vo != trust.vo or extensions.get(VO_EXTENSION) != vo.encode():
        raise BadCredential("wrong VO", vo)
    if certificate.principals != (names.unix_name(user, vo),) or user in names.RESERVED_USERS:
        raise BadCredential("bad principal")
    if extensions.get(SID_EXTENSION) != sid.encode():
        raise BadCredential("bad name", "session id")
    roles = extensions.get(ROLES_EXTENSION, b"").decode("ascii", "replace")
    if not _ROLES.fullmatch(roles):
        raise BadCredential("bad certificate", "roles")
    held = frozenset(filter(None, roles.split(",")))
    caller = Caller("user", vo=vo, name=user, sid=sid, serial=certificate.serial, roles=held)
    return caller, certificate.valid_after + SKEW_S


def verify_ssh_host(line: str, trust: Trust, now: int) -> tuple[Caller, int]:
    """Check a node's host certificate against one VO; result and errors as `verify_ssh_user`."""
    certificate = parse(key_blob(line))
    _check_trust(certificate, "host", trust.document.ssh_host_ca, now, NODE_CREDENTIAL_S)
    prefix, _, node = certificate.key_id.rpartition(":")
    if prefix != f"xos-node:{trust.vo}":
        raise BadCredential("wrong VO", prefix[:64])
    try:
        names.check_node(node)
    except names.BadName as error:
        raise BadCredential("bad name", "node") from error
    if certificate.principals != (node, f"{node}.{trust.vo}"):
        raise BadCredential("bad principal")
    return Caller("node", vo=trust.vo, name=node, serial=certificate.serial), certificate.valid_after + SKEW_S


def _check_trust(
    certificate: SshCertificate, kind: Literal["user", "host"], authorities: Sequence[str], now: int, life_s_max: int
) -> None:
    if certificate.kind != kind:
        raise BadCredential("wrong kind", f"{certificate.kind} certificate")
    if certificate.ca not in [key_blob(line) for line in authorities]:
        raise BadCredential("unknown issuer")
    if certificate.critical:
        raise BadCredential("unknown critical option", ",".join(certificate.critical)[:64])
    if now < certificate.valid_after:
        raise BadCredential("not yet valid")
    if not now < certificate.valid_before:
        raise BadCredential("expired")
    if certificate.valid_before - certificate.valid_after > life_s_max + SKEW_S:
        raise BadCredential("lives too long")
    if not certificate.principals:
        raise BadCredential("bad principal", "none")


def krl(authorities: Iterable[str], serials: Iterable[int], *, version: int, now: int) -> bytes:
    """Write a key revocation list (PROTOCOL.krl) that voids `serials` of every CA in `authorities`.

    sshd refuses everybody when the file is missing or cut, so write it to a temporary file and rename.
    """
    head = b"SSHKRL\n\0" + struct.pack(">IQQQ", 1, version, now, 0) + _string(b"") + _string(b"xtreemos")
    listed = sorted({serial for serial in serials if serial > 0})
    if not listed:
        return head
    numbers = b"".join(struct.pack(">Q", serial) for serial in listed)
    section = b"\x20" + _string(numbers)
    parts = [b"\x01" + _string(_string(key_blob(line)) + _string(b"") + section) for line in authorities]
    return head + b"".join(parts)
