"""Credentials in three dialects: the client makes three fresh keys and proves them, the issuer certifies them under one session id.

Why three keys and not one: a NATS client signs whatever nonce a server sends, and an SSH agent signs anything, so a key shared
between protocols would let one hostile server act as the user towards another (notes/vo-security.md, section 0).

`SessionKeys` (private, client side) and `Issuer` (CDA side) meet only through `PublicKeys`, `Proofs` and `Credentials`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from xtreemos import names
from xtreemos.fabric import jwt
from xtreemos.fabric.errors import BadKey
from xtreemos.fabric.nkeys import KeyKind, KeyPair, decode_public
from xtreemos.vo import ssh
from xtreemos.vo import x509 as certificates
from xtreemos.vo.errors import BadCredential
from xtreemos.vo.founding import IssuingKeys
from xtreemos.vo.model import NODE_CREDENTIAL_S, SKEW_S, Credentials, Node, Proofs, PublicKeys, Session
from xtreemos.vo.pop import check_ed25519, check_p256, proof_text


@dataclass(frozen=True, repr=False)
class SessionKeys:
    """Three fresh private keys. They stay with the agent (or the node) and are never sent."""

    ssh: ed25519.Ed25519PrivateKey
    nats: KeyPair
    x509: ec.EllipticCurvePrivateKey

    @classmethod
    def fresh(cls) -> SessionKeys:
        """Make three keys from the system's randomness."""
        return cls(ed25519.Ed25519PrivateKey.generate(), KeyPair.generate(KeyKind.USER), ec.generate_private_key(ec.SECP256R1()))

    def public(self) -> PublicKeys:
        """Return the halves that are sent."""
        encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        return PublicKeys(
            ssh=ssh.public_line(self.ssh.public_key()),
            nats=self.nats.public,
            x509=self.x509.public_key().public_bytes(encoding, form),
        )

    def prove(self, vo: str, sid: str, challenge: str) -> Proofs:
        """Sign the challenge with each key."""
        return Proofs(
            ssh=self.ssh.sign(proof_text("ssh", vo, sid, challenge)),
            nats=self.nats.sign(proof_text("nats", vo, sid, challenge)),
            x509=self.x509.sign(proof_text("x509", vo, sid, challenge), ec.ECDSA(hashes.SHA256())),
        )

    def x509_pem(self) -> bytes:
        """The TLS key as PKCS8 PEM (for a memfd; `ssl` loads only files)."""
        form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.x509.private_bytes(serialization.Encoding.PEM, form, none)

    def ssh_pem(self) -> bytes:
        """The SSH key in OpenSSH's own format."""
        form, none = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        return self.ssh.private_bytes(serialization.Encoding.PEM, form, none)


def check_proofs(keys: PublicKeys, proofs: Proofs, *, vo: str, sid: str, challenge: str) -> None:
    """Check that the asker holds all three private keys.

    Raises:
        BadCredential: a key is of the wrong kind, two are the same, or a proof does not hold.
    """
    nats_raw = _nats_raw(keys.nats)
    ssh_raw = ssh.load_public(keys.ssh).public_bytes_raw()
    if nats_raw == ssh_raw:
        raise BadCredential("one key for two protocols")
    check_ed25519(ssh_raw, proofs.ssh, proof_text("ssh", vo, sid, challenge), "ssh")
    check_ed25519(nats_raw, proofs.nats, proof_text("nats", vo, sid, challenge), "nats")
    check_p256(certificates.load_p256(keys.x509), proofs.x509, proof_text("x509", vo, sid, challenge))


def _nats_raw(public: str) -> bytes:
    try:
        return decode_public(public, KeyKind.USER)[1]
    except BadKey as error:
        raise BadCredential("bad public key", "nats: user nkey wanted") from error


class Issuer:
    """Signs credentials with the issuing keys of one VO. Decides nothing: the CDA says who gets what."""

    def __init__(self, keys: IssuingKeys) -> None:
        self._keys = keys
        self._signers = {seed: KeyPair.from_seed(seed, KeyKind.ACCOUNT) for seed in keys.secrets.nats_roles.values()}
        self.vo = keys.secrets.vo

    def issue_user(self, session: Session, keys: PublicKeys, *, serial: int, now: int) -> Credentials:
        """Certify a session's keys until `session.expires_at`; `keys` were proven."""
        after, before = now - SKEW_S, session.expires_at
        secrets = self._keys.secrets
        role = "admin" if "admin" in session.roles else "member"
        line = ssh.issue_user(
            self._keys.ssh_user_ca,
            ssh.load_public(keys.ssh),
            vo=self.vo,
            user=session.user,
            sid=session.sid,
            serial=serial,
            roles=session.roles,
            valid_after=after,
            valid_before=before,
        )
        uri = x509.UniformResourceIdentifier(names.user_uri(self.vo, session.user, session.sid))
        leaf = self._leaf(f"{session.user}@{self.vo}", keys, [uri], serial, after, before, session.roles, server=False)
        return Credentials(
            vo=self.vo,
            name=session.user,
            sid=session.sid,
            serial=serial,
            issued_at=now,
            expires_at=before,
            ends_at=session.ends_at,
            roles=session.roles,
            ssh=line,
            nats=self._nats(session.user, keys.nats, secrets.nats_roles[role], session.sid, before, now, role),
            x509=leaf,
        )

    def issue_node(self, node: Node, keys: PublicKeys, *, serial: int, now: int) -> Credentials:
        """Certify a node's keys for NODE_CREDENTIAL_S; a core node's NATS key is of role `service`, others `node`."""
        after, before = now - SKEW_S, now + NODE_CREDENTIAL_S
        role = "service" if node.core else "node"
        roles = ("core", "node") if node.core else ("node",)
        line = ssh.issue_host(
            self._keys.ssh_host_ca,
            ssh.load_public(keys.ssh),
            vo=self.vo,
            node=node.name,
            serial=serial,
            valid_after=after,
            valid_before=before,
        )
        alternatives = certificates.node_alternatives(self.vo, node.name, core=node.core)
        leaf = self._leaf(f"{node.name} of {self.vo}", keys, alternatives, serial, after, before, roles, server=True)
        seed = self._keys.secrets.nats_roles[role]
        return Credentials(
            vo=self.vo,
            name=node.name,
            sid=node.sid,
            serial=serial,
            issued_at=now,
            expires_at=before,
            ends_at=before,
            roles=roles,
            ssh=line,
            nats=self._nats(node.name, keys.nats, seed, node.sid, before, now, role),
            x509=leaf,
        )

    def _nats(self, name: str, public: str, seed: str, sid: str, before: int, now: int, role: str) -> str:
        return jwt.mint_user(
            self._signers[seed],
            account=self._keys.trust.document.nats_account,
            user=public,
            name=name,
            now=now,
            expires_at=before,
            tags=[f"sid:{sid}", f"role:{role}", f"name:{name}"],
        )

    def _leaf(
        self,
        title: str,
        keys: PublicKeys,
        alternatives: Sequence[x509.GeneralName],
        serial: int,
        after: int,
        before: int,
        roles: Sequence[str],
        *,
        server: bool,
    ) -> tuple[bytes, ...]:
        leaf = certificates.make_leaf(
            title,
            public=certificates.load_p256(keys.x509),
            issuer=self._keys.x509,
            alternatives=alternatives,
            server=server,
            serial=serial,
            not_before=after,
            not_after=before,
            roles=roles,
        )
        return certificates.der(leaf), certificates.der(self._keys.x509[0])
