"""The kernel's keyrings, for real; each test in a child process with a session keyring of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"


def in_child(script):
    """Run `script` (it prints what it saw) behind a fresh session keyring."""
    head = "from xtreemos.foundation import keyring as k\nimport os, subprocess, sys, time\nk.join_new_session()\n"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", head + script], capture_output=True, text=True, env=environment, timeout=30, check=False
    )
    if "cannot join a new session keyring" in done.stderr:
        pytest.skip("this kernel or container has no keyrings")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_key_is_read_replaced_unlinked_and_revoked():
    seen = in_child(
        "key = k.add('xos:demo', b'one'); print(k.read(key).decode())\n"
        "assert k.add('xos:demo', b'two') == key; print(k.read(k.find('xos:demo')).decode())\n"
        "k.unlink(key); print(k.find('xos:demo'))\n"
        "key = k.add('xos:demo', b'three'); k.revoke(key)\n"
        "try:\n    k.read(key)\nexcept k.KeyringFailed as e:\n    print(e.code)\n"
    )
    assert seen == ["one", "two", "None", "keyring"]


def test_a_key_expires():
    seen = in_child(
        "key = k.add('xos:demo', b'one', timeout_s=1); print(k.read(key).decode())\n"
        "end = time.monotonic() + 10\n"
        "while k.find('xos:demo') and time.monotonic() < end: time.sleep(0.05)\n"
        "print(k.find('xos:demo'))\n"
    )
    assert seen == ["one", "None"]


def test_a_large_key_is_whole_and_a_too_large_one_is_refused():
    seen = in_child(
        "secret = os.urandom(20000); print(k.read(k.add('big', secret)) == secret)\n"
        "for bad in (b'', b'x' * 40000):\n"
        "    try:\n        k.add('bad', bad)\n    except k.KeyringFailed as e:\n        print('refused')\n"
    )
    assert seen == ["True", "refused", "refused"]


CHILD = (
    "key = k.add('xos:secret', b'of the session')\n"
    "def start():\n    {join}os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
    "job = 'from xtreemos.foundation import keyring as k; f = k.find(\"xos:secret\"); print(f and k.read(f).decode())'\n"
    "print(subprocess.run([sys.executable, '-c', job], preexec_fn=start, capture_output=True, text=True).stdout)\n"
)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change the uid")
def test_a_job_of_another_uid_sees_no_key_of_its_starter_after_joining_a_new_session():
    assert in_child(CHILD.format(join="k.join_new_session(); ")) == ["None"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change the uid")
def test_without_joining_it_would():
    """The trap is real: the session keyring crosses setuid. If this fails the kernel has changed and the test above proves nothing."""
    assert in_child(CHILD.format(join="")) == ["of", "the", "session"]
