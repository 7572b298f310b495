"""Founding of a grid and of a VO: which keys there are, who keeps them, and their files.

- The VO's *root* signs only issuing certificates and the VO document. It is returned apart (`RootKey`): keep it offline or sealed.
- `VoSecrets` are the issuing keys, one per dialect, held by core nodes (who run the CDA). Losing one of them is mended by a new
  document; it cannot outlive the root's next word.
- `GridSecrets` are the transport's: NATS operator and system account, and the CA of the servers' TLS. They say nothing of VOs.

The only I/O is `save` and `load`: files 0600 in a folder 0700, replaced atomically.
"""

from __future__ import annotations

import ipaddress
import os
import secrets as random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from xtreemos import names
from xtreemos.errors import UsageError
from xtreemos.fabric.nkeys import KeyKind, KeyPair
from xtreemos.vo import ssh
from xtreemos.vo import x509 as certificates
from xtreemos.vo.document import Trust, VoDocument, open_document, root_fingerprint, sign_document
from xtreemos.vo.model import SIGNING_ROLES, SKEW_S, Record

FABRIC_SERVER_S: Final = 365 * 86400
_SECRETS_FILE: Final = "issuing.secret"
_ROOT_FILE: Final = "root.secret"
_GRID_FILE: Final = "grid.secret"


class BadKeyFile(UsageError):
    """A key file is missing, not ours, or readable by others; nothing was loaded."""

    code = "bad-key-file"


class VoSecrets(Record, frozen=True, kw_only=True):
    """Issuing keys of one VO and its signed document. PEM PKCS8 for X.509 and SSH keys, nkey seeds for NATS."""

    vo: str
    document: bytes
    root_sha256: bytes
    x509_key: bytes
    ssh_user_ca: bytes
    ssh_host_ca: bytes
    nats_account: str
    nats_roles: dict[str, str]
    challenge_key: bytes

    def __repr__(self) -> str:
        return f"VoSecrets({self.vo})"


class RootKey(Record, frozen=True, kw_only=True):
    """The VO's root: certificate DER and PEM key (encrypted if a passphrase was given)."""

    vo: str
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"RootKey({self.vo})"


class GridSecrets(Record, frozen=True, kw_only=True):
    """Keys of the transport of one grid. `*_seed` are nkey seeds; CA as DER and PEM."""

    name: str
    operator_seed: str
    operator_public: str
    signing_seed: str
    signing_public: str
    system_account_seed: str
    system_account_public: str
    system_user_seed: str
    system_user_public: str
    fabric_ca: bytes
    fabric_ca_key: bytes

    def __repr__(self) -> str:
        return f"GridSecrets({self.name})"

    @property
    def fabric_ca_pem(self) -> str:
        """The CA that clients of the fabric trust, as PEM."""
        return certificates.pem([x509.load_der_x509_certificate(self.fabric_ca)]).decode()


@dataclass(frozen=True)
class Founding:
    """A new VO: `secrets` go to core nodes, `root` goes offline."""

    secrets: VoSecrets
    root: RootKey


@dataclass(frozen=True)
class IssuingKeys:
    """`VoSecrets` as key objects, loaded once."""

    secrets: VoSecrets

    @cached_property
    def trust(self) -> Trust:
        """The VO as verifiers see it."""
        return open_document(self.secrets.document, root_sha256=self.secrets.root_sha256, vo=self.secrets.vo)

    @cached_property
    def x509(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Issuing certificate and its key."""
        key = _load_ec(self.secrets.x509_key)
        return next(item for item in self.trust.issuing if item.public_key() == key.public_key()), key

    @cached_property
    def ssh_user_ca(self) -> ed25519.Ed25519PrivateKey:
        """Signs sessions' SSH certificates."""
        return _load_ed25519(self.secrets.ssh_user_ca)

    @cached_property
    def ssh_host_ca(self) -> ed25519.Ed25519PrivateKey:
        """Signs nodes' SSH certificates."""
        return _load_ed25519(self.secrets.ssh_host_ca)


def found_vo(name: str, now: int, *, fabric_ca: str = "", passphrase: bytes = b"") -> Founding:
    """Make all keys of a VO and its first document.

    Args:
        name: of the VO.
        now: seconds since 1970.
        fabric_ca: PEM of the CA that the VO's NATS servers use, for the document.
        passphrase: encrypts the root key if not empty.
    """
    names.check_vo(name)
    root_key, x509_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificates.make_ca(f"{name} VO root", key=root_key, parent=None, now=now, life_s=certificates.ROOT_S)
    issuing = certificates.make_ca(
        f"{name} VO issuing 1", key=x509_key, parent=(root, root_key), now=now, life_s=certificates.ISSUING_S
    )
    user_ca, host_ca = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    account = KeyPair.generate(KeyKind.ACCOUNT)
    roles = {role: KeyPair.generate(KeyKind.ACCOUNT) for role in SIGNING_ROLES}
    document = VoDocument(
        vo=name,
        version=1,
        issued_at=now,
        x509_issuing=(certificates.der(issuing),),
        ssh_user_ca=(ssh.public_line(user_ca.public_key()),),
        ssh_host_ca=(ssh.public_line(host_ca.public_key()),),
        nats_account=account.public,
        nats_roles={role: pair.public for role, pair in roles.items()},
        fabric_ca=fabric_ca,
    )
    secrets = VoSecrets(
        vo=name,
        document=sign_document(document, root, root_key),
        root_sha256=root_fingerprint(root),
        x509_key=_pem(x509_key),
        ssh_user_ca=_pem(user_ca),
        ssh_host_ca=_pem(host_ca),
        nats_account=account.seed,
        nats_roles={role: pair.seed for role, pair in roles.items()},
        challenge_key=random.token_bytes(32),
    )
    return Founding(secrets, RootKey(vo=name, certificate=certificates.der(root), key=_pem(root_key, passphrase)))


def rotate_issuing(secrets: VoSecrets, root: RootKey, now: int, *, passphrase: bytes = b"") -> VoSecrets:
    """Replace every issuing key but the NATS account by new ones, and sign the next document.

    Credentials of the old keys are refused as soon as a verifier has the new document: this is the answer to a stolen issuer.
    The NATS signing keys' old entries go when the account JWT is minted again from the new document.
    """
    old = open_document(secrets.document, root_sha256=secrets.root_sha256, vo=secrets.vo).document
    root_certificate, root_key = x509.load_der_x509_certificate(root.certificate), _load_ec(root.key, passphrase)
    x509_key = ec.generate_private_key(ec.SECP256R1())
    title = f"{secrets.vo} VO issuing {old.version + 1}"
    issuing = certificates.make_ca(title, key=x509_key, parent=(root_certificate, root_key), now=now, life_s=certificates.ISSUING_S)
    user_ca, host_ca = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    roles = {role: KeyPair.generate(KeyKind.ACCOUNT) for role in SIGNING_ROLES}
    document = VoDocument(
        vo=secrets.vo,
        version=old.version + 1,
        issued_at=now,
        x509_issuing=(certificates.der(issuing),),
        ssh_user_ca=(ssh.public_line(user_ca.public_key()),),
        ssh_host_ca=(ssh.public_line(host_ca.public_key()),),
        nats_account=old.nats_account,
        nats_roles={role: pair.public for role, pair in roles.items()},
        fabric_ca=old.fabric_ca,
    )
    return VoSecrets(
        vo=secrets.vo,
        document=sign_document(document, root_certificate, root_key),
        root_sha256=secrets.root_sha256,
        x509_key=_pem(x509_key),
        ssh_user_ca=_pem(user_ca),
        ssh_host_ca=_pem(host_ca),
        nats_account=secrets.nats_account,
        nats_roles={role: pair.seed for role, pair in roles.items()},
        challenge_key=random.token_bytes(32),
    )


def found_grid(name: str, now: int) -> GridSecrets:
    """Make the transport's keys: NATS operator with a signing key, system account and user, and the servers' CA."""
    names.check_vo(name)
    operator, signing = KeyPair.generate(KeyKind.OPERATOR), KeyPair.generate(KeyKind.OPERATOR)
    account, user = KeyPair.generate(KeyKind.ACCOUNT), KeyPair.generate(KeyKind.USER)
    key = ec.generate_private_key(ec.SECP256R1())
    authority = certificates.make_ca(f"{name} fabric CA", key=key, parent=None, now=now, life_s=certificates.ROOT_S)
    return GridSecrets(
        name=name,
        operator_seed=operator.seed,
        operator_public=operator.public,
        signing_seed=signing.seed,
        signing_public=signing.public,
        system_account_seed=account.seed,
        system_account_public=account.public,
        system_user_seed=user.seed,
        system_user_public=user.public,
        fabric_ca=certificates.der(authority),
        fabric_ca_key=_pem(key),
    )


def fabric_dns(grid: str) -> str:
    """DNS name that every NATS server of a grid holds; clients check this one."""
    return f"nats.{grid}.grid.xtreemos.internal"


def issue_server(grid: GridSecrets, public: ec.EllipticCurvePublicKey, *, node: str, addresses: tuple[str, ...], now: int) -> bytes:
    """Issue the TLS certificate of one NATS server (clients and routes), as PEM of the leaf; serverAuth and clientAuth."""
    alternatives: list[x509.GeneralName] = [x509.DNSName(names.check_node(node)), x509.DNSName(fabric_dns(grid.name))]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    authority = x509.load_der_x509_certificate(grid.fabric_ca)
    leaf = certificates.make_leaf(
        f"{node} fabric server",
        public=public,
        issuer=(authority, _load_ec(grid.fabric_ca_key)),
        alternatives=alternatives,
        server=True,
        serial=random.randbits(62) | 1,
        not_before=now - SKEW_S,
        not_after=now + FABRIC_SERVER_S,
    )
    return certificates.pem([leaf])


def new_server_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """Make a key for a TLS server; returns it and its PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key, _pem(key)


def save(folder: Path, item: VoSecrets | RootKey | GridSecrets) -> Path:
    """Write keys to their file in `folder` (made 0700 if missing); returns the path."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = {VoSecrets: _SECRETS_FILE, RootKey: _ROOT_FILE, GridSecrets: _GRID_FILE}[type(item)]
    path = folder / name
    temporary = folder / f".{name}.{random.token_hex(6)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(item.to_bytes())
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    return path


def load_vo(folder: Path) -> VoSecrets:
    """Read a VO's issuing keys; raises BadKeyFile."""
    return VoSecrets.from_bytes(_read_private(folder / _SECRETS_FILE))


def load_root(folder: Path) -> RootKey:
    """Read a VO's root key; raises BadKeyFile."""
    return RootKey.from_bytes(_read_private(folder / _ROOT_FILE))


def load_grid(folder: Path) -> GridSecrets:
    """Read the transport's keys; raises BadKeyFile."""
    return GridSecrets.from_bytes(_read_private(folder / _GRID_FILE))


def _read_private(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise BadKeyFile(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & 0o077 or status.st_uid != os.getuid():
            raise BadKeyFile(f"{path} holds keys and others can read it", f"chmod 600 {path}, then replace the keys")
        return file.read()


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, passphrase: bytes = b"") -> bytes:
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        protection = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def _load_ec(pem: bytes, passphrase: bytes = b"") -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, passphrase or None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadKeyFile("not an elliptic curve key")
    return key


def _load_ed25519(pem: bytes) -> ed25519.Ed25519PrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadKeyFile("not an Ed25519 key")
    return key
