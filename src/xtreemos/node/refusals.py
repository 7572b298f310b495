"""Why a node does not start a program, or knows nothing of one. What is definite and what is not decides where it is tried next."""

from __future__ import annotations

from xtreemos.errors import EXIT_TRY_LATER, NotFound, PermissionRefused, TryLater, Unreachable


class NodeFull(TryLater):
    """The node has no room for another job now; nothing was started."""

    code = "node-full"


class NotMatching(TryLater):
    """The node does not match what the job asks for; nothing was started."""

    code = "not-matching"


class OwnerRefuses(PermissionRefused):
    """The policy of the node's owner, the VO or the user refuses; nothing was started."""

    code = "owner-refuses"


class JobdRestarted(TryLater):
    """The node's jobd was started anew before it took the program; nothing was started. Try again."""

    code = "jobd-restarted"


class StartUnknown(Unreachable):
    """The node's jobd went away in the midst of a start; whether the program runs is not known. See `xos ps` when it is back."""

    code = "start-unknown"
    exit_code = EXIT_TRY_LATER


class NoSuchJob(NotFound):
    """This node does not know the job (any more)."""

    code = "job-not-here"
