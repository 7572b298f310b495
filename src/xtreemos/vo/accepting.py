"""The CDA's method about volumes of other VOs: an administrator accepts that one is shared with this VO, or does so no more.

That the volume may be used is for its own VO to say; this half says that members here may go there. The file system reads both.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from xtreemos import names
from xtreemos.fabric.caller import Caller
from xtreemos.vo.desk import Desk, Method, kinds
from xtreemos.vo.errors import NotAllowed
from xtreemos.vo.model import ACCEPTED_MAX, Accepted

_VOLUME: Final = re.compile(r"[a-z0-9._-]{1,63}")


class AcceptParams(msgspec.Struct, forbid_unknown_fields=True):
    """A volume of another VO, and whether members may use it from now on."""

    vo: str
    volume: str
    accepted: bool


def table(desk: Desk) -> dict[str, Method]:
    """Rows of the CDA's table."""

    async def accept_share(_caller: Caller, params: AcceptParams) -> dict[str, Any]:
        """Answer `{vo, volumes}`: all that is accepted of that VO from now on."""
        vo = names.check_vo(params.vo)
        if vo == desk.vo or not _VOLUME.fullmatch(params.volume):
            raise NotAllowed(f"{params.volume[:64]}@{vo} is no volume of another VO", "write VOLUME@VO")

        def decide(old: Accepted | None) -> Accepted:
            volumes = {*(old.volumes if old else ())} - {params.volume} | ({params.volume} if params.accepted else set())
            if len(volumes) > ACCEPTED_MAX:
                raise NotAllowed(f"of one VO {ACCEPTED_MAX} volumes can be accepted")
            return Accepted(vo=vo, volumes=tuple(sorted(volumes)))

        record = await desk.registry.accepted.change(vo, decide)
        return {"vo": vo, "volumes": list(record.volumes)}

    return {"accept_share": Method(kinds("user", "local"), AcceptParams, accept_share, admin=True)}
