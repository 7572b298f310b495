"""The node owner's policy, `node/policy.cedar`, asked before every program; read again when the file changed.

Without the file guests may run programs. A file that cannot be used refuses everything, so that a slip of the pen never opens a
machine. The VO's and the user's own sets are asked in the same decision; both are empty (permit) until the VO can write them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xtreemos.aem.jobspec import JobSpec
from xtreemos.node.config import NodeConfig
from xtreemos.node.refusals import OwnerRefuses
from xtreemos.vo.model import PublicUser

FILE = "policy.cedar"


class NodePolicy:
    """Asks whether a job may run here. `config` and `facts` are the node's own, `member` what a VO says of a user (None: nothing)."""

    def __init__(
        self,
        folder: Path,
        config: Callable[[], NodeConfig],
        facts: Callable[[], Mapping[str, Any]],
        member: Callable[[str, str], PublicUser | None],
    ) -> None:
        self._folder = folder
        self._config = config
        self._facts = facts
        self._member = member
        self._seen: tuple[int, int] | None = None
        self._sets: tuple[Any, Any, Any] | None = None

    def _changed(self) -> bool:
        try:
            status = (self._folder / FILE).stat()
            seen = (status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            seen = None
        changed, self._seen = seen != self._seen, seen
        return changed

    def check_run(self, spec: JobSpec, node: str) -> None:
        """Refuse what a policy does not allow.

        Raises:
            OwnerRefuses: with the side and the policy's own reason. Definite.
        """
        if self._changed():
            if self._seen is None:
                self._sets = None
            else:
                from xtreemos.vo import policy  # Cedar costs 15 MB: a node without a policy needs none of it

                self._sets = (policy.Policies("user"), policy.Policies("vo"), policy.load_site(self._folder))
        if self._sets is None:
            return
        from xtreemos.vo import policy  # see above

        decision = policy.decide(self._request(policy, spec, node), *self._sets)
        if not decision.allowed:
            raise OwnerRefuses(decision.why, "ask them, or use another node")

    def _request(self, policy: Any, spec: JobSpec, node: str) -> Any:
        local, config = time.localtime(), self._config()
        member = self._member(spec.user, spec.vo)
        return policy.Request(
            user=spec.user,
            vo=spec.vo,
            action="run",
            node=node,
            roles=member.roles if member else (),
            groups=member.groups if member else (),
            site=config.site,
            core=config.core,
            tags=tuple(self._facts().get("tags", ())),
            program=spec.argv[0],
            cpus=int(spec.cpus or 0),
            memory_bytes=spec.memory_bytes or 0,
            wall_s=int(spec.wall_s or 0),
            network=config.network != "none",
            hour=local.tm_hour,
            weekday=local.tm_wday + 1,
        )
