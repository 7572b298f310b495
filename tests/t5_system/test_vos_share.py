"""Two VOs on one grid share a volume by agreement: with both halves its members come in, and at once they are out again.

The last file of the tier: the second VO stays with the lab.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from gridkit import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root")

GUEST = """
cat /xos/demo/t5-lib/a; echo no > /xos/demo/t5-lib/a; ls /xos/demo
echo asked; read x; cat /xos/demo/t5-lib/a; ls /xos/demo/t5-lib; echo over
"""


def test_members_of_another_vo_use_what_is_shared_with_it_until_it_is_shared_no_more(grid):
    invite = json.loads(grid.out("xos vo create phys --admin carol --json", user=None))["invite"]
    carol = "XOS_AGENT_DIR=/tmp/t5-carol; export XOS_AGENT_DIR; cd /tmp;"
    grid.out(f"{carol} mkdir -pm 700 $XOS_AGENT_DIR; p=correct-horse-5; printf '%s\\n%s\\n' $p $p | xos vo accept --password-stdin {invite};"
             "echo $p | xos login --password-stdin carol@phys")  # fmt: skip
    grid.out("xos fs mkvol t5-lib --mode 0777 && echo text > /xos/demo/t5-lib/a && chmod 666 /xos/demo/t5-lib/a")
    try:
        alone = grid.out(f"{carol} xos run --vo phys -- sh -c 'ls /xos; ls /xos/demo 2>&1; true'")
        assert "phys" in alone.split()
        assert "t5-lib" not in alone
        grid.out(f"xos fs share t5-lib --with phys; {carol} xos fs accept t5-lib@demo --vo phys")
        until(lambda: "text" in grid.sh(f"{carol} xos run --vo phys -- cat /xos/demo/t5-lib/a").stdout.decode(), "it is shown")
        words = grid.inside("n1", "bash", "-c", f'{carol} exec xos run --vo phys -- sh -c "$1" 2>&1', "-", GUEST, user="alice")
        with subprocess.Popen(words, env=grid.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
            said = ""
            while "asked" not in said:
                line = job.stdout.readline()
                assert line, said
                said += line
            assert [word for word in said.split("\n") if word in {"text", "t5-lib"}] == ["text", "t5-lib"], said
            assert "Read-only file system" in said
            grid.out("xos fs unshare t5-lib --with phys")
            after = job.communicate("\n", timeout=20)[0]
        assert "text" not in after
        assert after.count("Permission denied") == 2
        as_carol = "u=$(id -u carol.phys); setpriv --reuid $u --regid $u --clear-groups sh -c 'ls /xos/demo; cat /xos/demo/t5-lib/a; ls /xos/demo/home-alice'"
        outside = grid.sh(as_carol, user=None)  # a local uid of another VO, outside of any sandbox
        assert (outside.stdout, outside.stderr.count(b"Permission denied")) == (b"", 3)
    finally:
        grid.out(f"xos fs rmvol t5-lib --force --yes; {carol} xos logout --vo phys")
