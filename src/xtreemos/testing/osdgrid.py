"""A VO just for OSDs and their clients: certificates of nodes in the form in which xosd leaves them, without any xosd."""

from __future__ import annotations

import time
from pathlib import Path

from xtreemos.aem.agent.session import pack
from xtreemos.foundation.files import write_atomically
from xtreemos.vo import founding
from xtreemos.vo.client import Issued
from xtreemos.vo.credentials import Issuer, SessionKeys
from xtreemos.vo.model import Node
from xtreemos.xtreemfs.credential import CREDENTIAL_FILE


class OsdGrid:
    """Founds a VO and certifies nodes of it."""

    def __init__(self, vo: str = "demo") -> None:
        self.vo = vo
        self._keys = founding.IssuingKeys(founding.found_vo(vo, int(time.time()) - 10).secrets)
        self._issuer = Issuer(self._keys)
        self._serial = 1

    def certify(self, node: str, folder: Path, *, core: bool = False) -> Path:
        """Write a fresh credential of `node` into `folder`, replacing one that is there; returns the folder."""
        now = int(time.time())
        self._serial += 1
        keys = SessionKeys.fresh()
        member = Node(name=node, sid="0" * 32, addresses=(), core=core, owner="", consent=b"", joined_at=now, expires_at=now + 9999)
        credentials = self._issuer.issue_node(member, keys.public(), serial=self._serial, now=now)
        write_atomically(folder / CREDENTIAL_FILE, pack(Issued(keys, credentials, self._keys.trust)))
        return folder
