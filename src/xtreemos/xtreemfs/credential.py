"""The node's own certificate of a VO as its file server processes use it: read from the folder where xosd keeps it, again when renewed.

xosd writes the file in the form of `aem.agent.session.pack`, which this package must not import; only what TLS wants is read here.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from xtreemos.errors import XosError
from xtreemos.vo.document import open_document
from xtreemos.vo.model import Credentials
from xtreemos.vo.tls import Identity, chain_pem

log = logging.getLogger(__name__)

CREDENTIAL_FILE = "node.secret"


class _Kept(msgspec.Struct, frozen=True):
    """What of the file is used; its other fields (SSH and NATS keys) are passed over."""

    x509: bytes
    credentials: bytes
    document: bytes
    root_sha256: bytes


def load_identity(folder: Path) -> Identity:
    """Read the certificate, key and trust of the node from its folder of one VO.

    Raises:
        OSError: there is no such file, or we may not read it. msgspec.MsgspecError, XosError: it is damaged.
    """
    kept = msgspec.msgpack.decode((folder / CREDENTIAL_FILE).read_bytes(), type=_Kept)
    trust = open_document(kept.document, root_sha256=kept.root_sha256)
    return Identity(trust, chain_pem(Credentials.from_bytes(kept.credentials).x509), kept.x509)


class CredentialFolder:
    """The identity in a folder, read again after the file was replaced. `look` is cheap: call it every few seconds, or before use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = self._stamp()
        self.identity = load_identity(folder)

    def _stamp(self) -> tuple[int, int]:
        status = (self._folder / CREDENTIAL_FILE).stat()
        return status.st_ino, status.st_mtime_ns

    def look(self) -> bool:
        """Take the file anew if it changed; returns whether `identity` did. One that cannot be read is told in the log and the old one kept."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return False
            self.identity = load_identity(self._folder)
        except (OSError, ValueError, msgspec.MsgspecError, XosError) as error:
            log.warning("the node's credential in %s cannot be read: %s", self._folder, error)
            return False
        self._seen = stamp
        return True
