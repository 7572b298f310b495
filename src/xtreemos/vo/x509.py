"""X.509 of a VO: a root that stays sealed, issuing intermediates (pathlen 0), leaves for sessions and nodes; and our strict verifier.

Theory: OpenSSL checks chains but ties no name to a CA; a leaf is ours only if it was signed by an issuing certificate that *this
VO's* document lists, and if its one URI SAN is in this VO's name space, letter by letter. So a verifier here takes one VO's
`Trust`, never a pool. P-256 everywhere (hardware tokens and browsers know it). It knows no sockets.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import secrets
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from xtreemos import names
from xtreemos.fabric.caller import Caller
from xtreemos.vo.document import Trust
from xtreemos.vo.errors import BadCredential
from xtreemos.vo.model import CREDENTIAL_S_MAX, NODE_CREDENTIAL_S, SKEW_S

ROOT_S: Final = 10 * 365 * 86400
ISSUING_S: Final = 2 * 365 * 86400
ROLES_OID: Final = x509.ObjectIdentifier("2.25.243168745012864912357812093475612384571")
"""Our own extension (arc 2.25 is for UUIDs): JSON list of the session's roles. Not critical: peers may ignore it."""
CERTIFICATE_BYTES_MAX: Final = 8192
_USER_URI = re.compile(r"spiffe://([a-z_][a-z0-9_-]{0,30})/user/([a-z_][a-z0-9_-]{0,30})/session/([0-9a-f]{32})")
_NODE_URI = re.compile(r"spiffe://([a-z_][a-z0-9_-]{0,30})/node/([a-z0-9][a-z0-9-]{0,62})")
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for bytes that are no certificate or key of a kind it knows."""
_KNOWN_EXTENSIONS: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ROLES_OID,
    }
)


def vo_dns(vo: str) -> str:
    """DNS name (and SNI) under which every node of a VO answers."""
    return f"{names.check_vo(vo)}.vo.xtreemos.internal"


def cda_dns(vo: str) -> str:
    """DNS name that only core nodes hold: who sends a password asks for this one."""
    return f"cda.{vo_dns(vo)}"


def _time(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _seconds(when: dt.datetime) -> int:
    return int(when.timestamp())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def make_ca(
    title: str,
    *,
    key: ec.EllipticCurvePrivateKey,
    parent: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    now: int,
    life_s: int,
) -> x509.Certificate:
    """Make a CA certificate: self-signed root (pathlen 1) without `parent`, else an issuing one (pathlen 0)."""
    subject = _name(title)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent[0].subject if parent else subject)
        .public_key(key.public_key())
        .serial_number(secrets.randbits(120) | 1)
        .not_valid_before(_time(now - SKEW_S))
        .not_valid_after(_time(now + life_s))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0 if parent else 1), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if parent:
        aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(parent[1].public_key())
        builder = builder.add_extension(aki, critical=False)
    return builder.sign(parent[1] if parent else key, hashes.SHA256())


def make_leaf(
    title: str,
    *,
    public: ec.EllipticCurvePublicKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    alternatives: Sequence[x509.GeneralName],
    server: bool,
    serial: int,
    not_before: int,
    not_after: int,
    roles: Sequence[str] = (),
) -> x509.Certificate:
    """Make an end-entity certificate: clientAuth, with `server` serverAuth as well."""
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])]
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(title[:64]))
        .issuer_name(issuer[0].subject)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(_time(not_before))
        .not_valid_after(_time(not_after))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer[1].public_key()), critical=False)
    )
    if roles:
        encoded = json.dumps(sorted(roles)).encode()
        builder = builder.add_extension(x509.UnrecognizedExtension(ROLES_OID, encoded), critical=False)
    return builder.sign(issuer[1], hashes.SHA256())


def node_alternatives(vo: str, node: str, *, core: bool) -> list[x509.GeneralName]:
    """SANs of a node: its URI, its name, the VO's name, and for a core node the CDA's name."""
    dns = [names.check_node(node), vo_dns(vo), *([cda_dns(vo)] if core else [])]
    return [x509.UniformResourceIdentifier(names.node_uri(vo, node)), *(x509.DNSName(name) for name in dns)]


def load_p256(spki_der: bytes) -> ec.EllipticCurvePublicKey:
    """Read a SubjectPublicKeyInfo; raises BadCredential unless it is a P-256 key."""
    try:
        key = serialization.load_der_public_key(spki_der)
    except _UNREADABLE as error:
        raise BadCredential("bad public key", "x509") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise BadCredential("bad public key", "x509: P-256 wanted")
    return key


def pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Write certificates one after the other, as OpenSSL and `ssl` load them."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def der(certificate: x509.Certificate) -> bytes:
    """Write one certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def verify_user_x509(chain: Sequence[bytes], trust: Trust, now: int) -> tuple[Caller, int]:
    """Check a session's certificate.

    Args:
        chain: DER, leaf first; further ones, if any, must be issuing certificates of the VO.
        trust: the one VO for which the peer was admitted (by SNI or listener).
        now: seconds since 1970.

    Returns:
        The caller and when the certificate was issued (for revocation by time).

    Raises:
        BadCredential: with the reason. Revocation is not looked at here; see `revocation`.
    """
    leaf, uri = _verify_leaf(chain, trust, now, usages={ExtendedKeyUsageOID.CLIENT_AUTH}, life_s_max=CREDENTIAL_S_MAX)
    match = _USER_URI.fullmatch(uri)
    if not match:
        raise BadCredential("bad name", "not a session's URI")
    if match[1] != trust.vo:
        raise BadCredential("wrong VO", match[1])
    try:
        names.check_user(match[2])
    except names.BadName as error:
        raise BadCredential("bad name", "reserved") from error
    if len(_alternatives(leaf)) != 1:
        raise BadCredential("bad name", "a session has one name only")
    caller = Caller("user", vo=match[1], name=match[2], sid=match[3], serial=leaf.serial_number, roles=_roles(leaf))
    return caller, _seconds(leaf.not_valid_before_utc) + SKEW_S


def verify_node_x509(chain: Sequence[bytes], trust: Trust, now: int) -> tuple[Caller, int]:
    """Check a node's certificate; arguments, result and errors as `verify_user_x509`."""
    usages = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    leaf, uri = _verify_leaf(chain, trust, now, usages=usages, life_s_max=NODE_CREDENTIAL_S)
    match = _NODE_URI.fullmatch(uri)
    if not match:
        raise BadCredential("bad name", "not a node's URI")
    if match[1] != trust.vo:
        raise BadCredential("wrong VO", match[1])
    allowed = {match[2], vo_dns(trust.vo), cda_dns(trust.vo)}
    for alternative in _alternatives(leaf):
        if isinstance(alternative, x509.UniformResourceIdentifier):
            continue
        if not isinstance(alternative, x509.DNSName) or alternative.value not in allowed:
            raise BadCredential("bad name", "a node's names are its own and the VO's")
    caller = Caller("node", vo=match[1], name=match[2], serial=leaf.serial_number, roles=_roles(leaf))
    return caller, _seconds(leaf.not_valid_before_utc) + SKEW_S


def verify_x509(chain: Sequence[bytes], trust: Trust, now: int) -> tuple[Caller, int]:
    """Check a certificate of either kind; which one is told by its URI."""
    if not chain:
        raise BadCredential("no certificate")
    if b"/node/" in chain[0] and b"/session/" not in chain[0]:
        return verify_node_x509(chain, trust, now)
    return verify_user_x509(chain, trust, now)


def _verify_leaf(
    chain: Sequence[bytes], trust: Trust, now: int, *, usages: set[x509.ObjectIdentifier], life_s_max: int
) -> tuple[x509.Certificate, str]:
    """Check everything that users and nodes have in common; return the leaf and its one URI."""
    if not 1 <= len(chain) <= 3:
        raise BadCredential("bad chain", f"{len(chain)} certificates")
    if len(chain[0]) > CERTIFICATE_BYTES_MAX:
        raise BadCredential("bad certificate", "too long")
    try:
        leaf = x509.load_der_x509_certificate(chain[0])
        extensions = list(leaf.extensions)
        issuer = leaf.issuer
        not_before, not_after = _seconds(leaf.not_valid_before_utc), _seconds(leaf.not_valid_after_utc)
    except _UNREADABLE as error:
        raise BadCredential("bad certificate", "cannot be read") from error
    _check_signature(leaf, issuer, trust, now)
    if any(bytes(extra) not in trust.chain_der for extra in chain[1:]):
        raise BadCredential("bad chain", "a stranger's certificate is in it")
    if not now < not_after:
        raise BadCredential("expired")
    if now < not_before:
        raise BadCredential("not yet valid")
    if not_after - not_before > life_s_max + SKEW_S:
        raise BadCredential("lives too long")
    _check_extensions(leaf, extensions, usages)
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise BadCredential("bad public key", "P-256 wanted")
    uris = [name.value for name in _alternatives(leaf) if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise BadCredential("bad name", f"{len(uris)} URIs, one wanted")
    return leaf, uris[0]


def _check_signature(leaf: x509.Certificate, issuer: x509.Name, trust: Trust, now: int) -> None:
    """The issuer must be one of the VO's issuing certificates, and be valid now."""
    for candidate in trust.issuing:
        if candidate.subject != issuer:
            continue
        try:
            leaf.verify_directly_issued_by(candidate)
        except (*_UNREADABLE, InvalidSignature):
            continue
        if not _seconds(candidate.not_valid_before_utc) <= now < _seconds(candidate.not_valid_after_utc):
            raise BadCredential("issuer expired")
        return
    raise BadCredential("unknown issuer")


def _check_extensions(
    leaf: x509.Certificate, extensions: Sequence[x509.Extension[x509.ExtensionType]], usages: set[x509.ObjectIdentifier]
) -> None:
    if leaf.version is not x509.Version.v3:
        raise BadCredential("bad certificate", "version")
    unknown = [item for item in extensions if item.critical and item.oid not in _KNOWN_EXTENSIONS]
    if unknown:
        raise BadCredential("bad certificate", "unknown critical extension")
    by_oid = {item.oid: item.value for item in extensions}
    basic = by_oid.get(ExtensionOID.BASIC_CONSTRAINTS)
    if not isinstance(basic, x509.BasicConstraints) or basic.ca:
        raise BadCredential("is a CA")
    usage = by_oid.get(ExtensionOID.KEY_USAGE)
    if not isinstance(usage, x509.KeyUsage) or usage.key_cert_sign or usage.crl_sign or not usage.digital_signature:
        raise BadCredential("wrong key usage")
    extended = by_oid.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if not isinstance(extended, x509.ExtendedKeyUsage) or set(extended) != usages:
        raise BadCredential("wrong key usage", "extended")


def _alternatives(leaf: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _roles(leaf: x509.Certificate) -> frozenset[str]:
    try:
        extension = leaf.extensions.get_extension_for_oid(ROLES_OID).value
    except x509.ExtensionNotFound:
        return frozenset()
    raw = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    try:
        roles = json.loads(raw)
    except ValueError as error:
        raise BadCredential("bad certificate", "roles") from error
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise BadCredential("bad certificate", "roles")
    return frozenset(roles)
