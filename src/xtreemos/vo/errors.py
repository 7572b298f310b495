"""Every error of the VO room. The text is what a user reads; what an attacker could learn from it was weighed."""

from __future__ import annotations

from xtreemos.errors import PermissionRefused, TryLater, UsageError, XosError


class BadCredential(PermissionRefused):
    """A certificate, signature or proof did not hold; `reason` is a short stable word for logs and tests."""

    code = "bad-credential"

    def __init__(self, reason: str, detail: str = "", hint: str = "log in again: `xos login USER@VO`") -> None:
        super().__init__(f"credential refused: {reason}" + (f" ({detail})" if detail else ""), hint)
        self.reason = reason


class Revoked(BadCredential):
    """A credential that was good once and has been withdrawn."""

    code = "revoked"


class Replayed(BadCredential):
    """A challenge, proof or message was seen before, or is too old."""

    code = "replayed"


class LoginRefused(PermissionRefused):
    """Name or password is wrong; on purpose it does not say which."""

    code = "login-refused"


class TooManyAttempts(TryLater):
    """Too many failed log-ins of this user or from this place; nothing was checked."""

    code = "too-many-attempts"


class NotAllowed(PermissionRefused):
    """The caller is known and may not do this."""

    code = "not-allowed"


class BadToken(PermissionRefused):
    """A one-time token is unknown, used, expired or for something else; on purpose it does not say which."""

    code = "bad-token"


class BadTokenText(UsageError):
    """The text is not a token of ours at all."""

    code = "bad-token-text"


class AlreadyThere(UsageError):
    """A user or node of that name exists in the VO."""

    code = "already-there"


class NoSuchMember(UsageError):
    """The VO has no such user, node or session."""

    code = "no-such-member"


class BadPassword(UsageError):
    """A new password breaks a rule."""

    code = "bad-password"


class BadDocument(XosError):
    """A VO document is not signed by the VO's root, or older than one already seen."""

    fault = "peer"
    code = "bad-document"


class BadPolicy(UsageError):
    """A policy text does not parse or breaks the schema; it was not taken."""

    code = "bad-policy"


class AuditBroken(XosError):
    """The audit's hash chain does not hold: somebody changed or cut it."""

    fault = "environment"
    code = "audit-broken"


class Busy(TryLater):
    """Too many password checks are waiting here; another core node may be free."""

    code = "busy"
