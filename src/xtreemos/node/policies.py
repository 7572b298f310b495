"""The three policies that must all agree before a program runs: the user's own, the VO's, the node owner's.

The owner's is the file `node/policy.cedar`; without it guests may run programs. A file that cannot be read or understood refuses
everything, so that a slip of the pen never opens a machine.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from xtreemos.aem.jobspec import JobSpec
from xtreemos.node.jobs import OwnerRefuses

log = logging.getLogger(__name__)


class Policies:
    """The owner's policy of this node, read again when the file changed."""

    def __init__(self, private: Path) -> None:
        self.path = private / "policy.cedar"
        self._seen: tuple[int, int] | None = None
        self._set: Any = None
        self._broken: str | None = None

    def _refresh(self) -> None:
        try:
            status = self.path.stat()
            seen = (status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            seen = (0, 0)
        if seen == self._seen:
            return
        self._seen, self._broken = seen, None
        if seen == (0, 0):
            self._set = None
            return
        from xtreemos.vo import policy  # noqa: PLC0415  # Cedar costs 15 MB; a node without a policy file needs none of it

        try:
            self._set = policy.load(self.path.read_text(encoding="utf-8"))
        except (policy.BadPolicy, OSError, UnicodeDecodeError) as error:
            self._broken = str(error)
            log.error("%s: %s; every program is refused until it is mended", self.path, error)

    def check_run(self, spec: JobSpec, sid: str, node: str) -> None:
        """Refuse what the owner does not allow.

        Raises:
            OwnerRefuses: with the policy's own reason. Definite.
        """
        self._refresh()
        if self._broken is not None or self._set is None:
            raise OwnerRefuses(
                f"the owner of node {node} has a policy that cannot be read", "the owner must mend node/policy.cedar"
            )
        request = policy.run_request(
            user=spec.user,
            vo=spec.vo,
            node=node,
            program=spec.argv[0],
            cpus=spec.cpus or 0.0,
            memory_bytes=spec.memory_bytes or 0,
            wall_s=spec.wall_s or 0.0,
            detached=spec.detached,
            sid=sid,
        )
        decision = policy.decide(request, site_set=self._set)
        if not decision.allowed:
            raise OwnerRefuses(f"{decision.who_refused} of node {node} refuses: {decision.why}", "ask them, or use another node")
