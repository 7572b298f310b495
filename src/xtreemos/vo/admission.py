"""Admission: a certificate comes in, a `Caller` or a refusal comes out, and every refusal stands in the audit.

One per VO and process. It joins the strict verifiers, the revocation set and the audit, so that no listener can forget one of the
three. It knows no sockets; whoever holds one passes what the peer showed and where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from xtreemos import names
from xtreemos.fabric.caller import Caller
from xtreemos.vo.audit import Audit, AuditRecord
from xtreemos.vo.document import Trust
from xtreemos.vo.errors import BadCredential, Revoked
from xtreemos.vo.revocation import RevocationSet
from xtreemos.vo.ssh import verify_ssh_user
from xtreemos.vo.x509 import verify_x509

ADDRESS_MAX: Final = 64


@dataclass
class Admission:
    """The gate of one VO. `trust` is replaced when a newer VO document arrives."""

    trust: Trust
    revoked: RevocationSet
    audit: Audit
    clock: Callable[[], float]

    def x509(self, chain: Sequence[bytes], address: str = "") -> Caller:
        """Admit a TLS peer by its certificate chain (DER, leaf first).

        Raises:
            BadCredential: refused, with the reason; audited.
        """
        return self._admit("x509", lambda now: verify_x509(chain, self.trust, now), address)

    def ssh(self, line: str, unix_user: str, address: str = "") -> Caller:
        """Admit an SSH log-in of Unix user `unix_user` by a certificate (OpenSSH line).

        Raises:
            BadCredential: refused, with the reason; audited.
        """

        def check(now: int) -> tuple[Caller, int]:
            caller, issued_at = verify_ssh_user(line, self.trust, now)
            if names.unix_name(caller.name, caller.vo) != unix_user:
                raise BadCredential("bad principal", f"{caller} is not {unix_user[:64]!r}")
            return caller, issued_at

        return self._admit("ssh", check, address)

    def _admit(self, dialect: str, check: Callable[[int], tuple[Caller, int]], address: str) -> Caller:
        now = int(self.clock())
        caller = Caller("anonymous")
        try:
            caller, issued_at = check(now)
            if self.revoked.covers(caller, issued_at):
                raise Revoked(f"the credential of {caller} was revoked")
        except BadCredential as error:
            detail = {"address": address[:ADDRESS_MAX], "reason": error.reason}
            record = AuditRecord(
                at=now, vo=self.trust.vo, who=str(caller), what=f"admit.{dialect}", allowed=False, why=error.message, detail=detail
            )
            self.audit.append(record)
            raise
        return replace(caller, address=address)
