"""What a job can and cannot do in its sandbox, tried from the inside."""

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from xtreemos.foundation.sandbox import Bind
from xtreemos.testing.jobkit import UID, JobKit

PY = "/usr/bin/python3"


@pytest.fixture(scope="module")
def kit():
    secret = os.open("/etc/shadow", os.O_RDONLY)
    with JobKit(Path(tempfile.mkdtemp(prefix="xossbx")), f"s{os.getpid()}") as it:
        it.folder.chmod(0o755)
        it.kill_jobd(15)
        # the parent of jobd holds root's secrets: an open file at 9, and a key in the session keyring that everything below inherits
        it.start_jobd(preexec=lambda: (plant_key(), os.dup2(secret, 9, inheritable=True)))
        yield it
    os.close(secret)


KEYCTL, ADD_KEY = 250, 248


def plant_key():
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(KEYCTL, 1, None)
    assert libc.syscall(ADD_KEY, b"user", b"xos-secret", b"s3cret", 6, -3) > 0


def inside(kit, script, **params):
    outcome = kit.run_job([PY, "-c", "import os, ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n" + script], **params)
    assert outcome.exit["code"] == 0, outcome.out[2].decode()
    return outcome.out[1].decode().strip()


def test_no_descriptor_is_inherited(kit):
    assert Path(f"/proc/{kit.pid}/fd").exists()
    assert inside(kit, "print(sorted(map(int, os.listdir('/proc/self/fd'))))") == "[0, 1, 2, 3]"  # 3 is the listing's own


def test_no_key_is_inherited(kit):
    script = "print(libc.syscall(249, b'user', b'xos-secret', None, 0), ctypes.get_errno())\nprint(open('/proc/keys').read().count('xos-secret') if os.access('/proc/keys', 4) else 0)"
    assert inside(kit, script).split() == ["-1", "1", "0"]


def test_capabilities_are_empty_and_setuid_gains_nothing(kit):
    status = inside(kit, "print(open('/proc/self/status').read())")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"].strip(), fields["Seccomp"].strip()) == ("1", "2")
    mine = kit.folder / "setuid-id"
    mine.write_bytes(Path("/usr/bin/id").read_bytes())
    mine.chmod(0o4755)
    tool = (Bind(str(kit.folder), "/tools", writable=False),)
    outcome = kit.run_job(["/tools/setuid-id", "-u"], spec={"work": tool})
    assert outcome.out[1].decode().strip() == str(UID)


def test_the_system_is_read_only_and_tmp_is_private(kit):
    script = """
for path in ('/etc/x', '/usr/x', '/x', '/var/lib/x', '/proc/sys/kernel/hostname', '/sys/x', '/opt/x'):
    try: open(path, 'w'); print('wrote', path)
    except OSError: pass
print([n for n in os.listdir('/tmp') if not n.startswith('xossbx')]);  # that one is the way to its home
open('/tmp/mine', 'w'); open(os.environ['HOME'] + '/mine', 'w')"""
    assert inside(kit, script) == "[]"
    assert not Path("/tmp/mine").exists()  # the machine's own /tmp
    assert (kit.home / "mine").stat().st_uid == UID
    (kit.home / "mine").unlink()


def test_nothing_of_the_node_or_other_jobs_is_seen(kit):
    script = f"print(os.path.exists({str(kit.run)!r}), os.access('/etc/shadow', 4), [p for p in os.listdir('/proc') if p.isdigit()], os.listdir('/sys/class/net'), os.uname().nodename)"
    assert inside(kit, script) == "False False ['1', '2'] ['lo'] n1"


def test_pid_one_is_init_and_the_job_cannot_touch_it(kit):
    script = """
print(open('/proc/1/cmdline').read().split(chr(0))[0], os.getpid())
os.kill(1, 9); os.kill(1, 15)
print(libc.ptrace(16, 1, None, None), ctypes.get_errno())
try: open('/proc/1/mem', 'rb'); print('read')
except OSError as e: print('kept out')"""
    assert inside(kit, script).splitlines() == ["/run/xos/init 2", "-1 1", "kept out"]


REFUSED = {
    "user name space": "libc.unshare(0x10000000)",
    "user name space by clone": "libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)",
    "mount name space": "libc.unshare(0x20000)",
    "mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
    "setns": "libc.setns(0, 0)",
    "keyctl": "libc.syscall(250, 0, -3, 0)",
    "add_key": "libc.syscall(248, b'user', b'a', b'b', 1, -3)",
    "bpf": "libc.syscall(321, 0, 0, 0)",
    "ioctl TIOCSTI": "libc.ioctl(0, 0x5412, b'x')",
    "ioctl TIOCSTI with high bits": "libc.syscall(16, 0, ctypes.c_ulong(0x100005412), b'x')",
    "kexec": "libc.syscall(246, 0, 0, 0, 0)",
    "handle": "libc.syscall(304, 0, 0, 0)",
    "module": "libc.syscall(175, 0, 0, 0)",
}
ABSENT = {
    "io_uring": "libc.syscall(425, 1, 0)",
    "userfaultfd": "libc.syscall(323, 0)",
    "perf": "libc.syscall(298, 0, 0, 0, 0, 0)",
    "clone3": "libc.syscall(435, 0, 0)",
}


def test_the_filter_refuses_what_leads_out(kit):
    calls = [*REFUSED.values(), *ABSENT.values()]
    script = "\n".join(f"ctypes.set_errno(0); r = {call}; print(r, ctypes.get_errno())" for call in calls)
    answers = inside(kit, script, stdio="pty").replace("\r", "").splitlines()
    assert dict(zip([*REFUSED, *ABSENT], answers, strict=True)) == {
        **dict.fromkeys(REFUSED, "-1 1"),
        **dict.fromkeys(ABSENT, "-1 38"),
    }


def test_programs_of_the_node_run_unchanged(kit):
    script = """
mkdir t && cd t && printf '#include <stdio.h>\\nint main(void){puts("made here");}\\n' > a.c && gcc a.c -o a && ./a
git init -q . && git status --short | head -1; perl -e 'print "perl\\n"'; tar cf - a.c | tar tf -; sort -R a.c | wc -l; cd .. && rm -r t
"""
    outcome = kit.run_job(["/bin/bash", "-ec", script])
    assert outcome.out[1].decode().split("\n")[:4] == ["made here", "?? a", "perl", "a.c"], outcome


def test_work_folder_umask_nice_and_limits_are_carried(kit):
    spec = {"umask": 0o027, "nice": 7, "rlimits": (("RLIMIT_NOFILE", 100, 200), ("RLIMIT_CPU", 5, -1)), "ignored_signals": (1,)}
    script = "import resource, signal; m = os.umask(0); print(oct(m), os.nice(0), resource.getrlimit(7), resource.getrlimit(0), signal.getsignal(1), signal.getsignal(13), signal.pthread_sigmask(0, []))"
    expected = "0o27 7 (100, 200) (5, -1) 1 1 set()"  # Python itself ignores 13
    assert inside(kit, script, spec=spec) == expected


def test_default_signals_are_default(kit):
    outcome = kit.run_job(["/bin/sh", "-c", "grep -E 'SigBlk|SigIgn' /proc/self/status"])
    assert outcome.out[1].split()[1::2] == [b"0" * 16, b"0" * 16]


def test_a_missing_work_folder_is_said_and_home_is_used(kit):
    outcome = kit.run_job(["pwd"], spec={"cwd": "/no/such/folder"})
    assert outcome.out[1].decode().strip() == str(kit.home)
    assert b"cannot enter /no/such/folder" in outcome.out[2]


def test_read_only_work_is_read_only_and_hidden_is_empty(kit):
    shown = kit.folder / "shown"
    shown.mkdir()
    shown.chmod(0o777)
    (shown / "file").write_text("x")
    bind = (Bind(str(shown), "/data/in", writable=False), Bind(str(shown), "/data/out"))
    script = "open('/data/out/new', 'w')\ntry: open('/data/in/bad', 'w')\nexcept OSError as e: print(e.errno)\nprint(os.listdir('/opt/../etc/ssl/private') if os.access('/etc/ssl/private', 4) else [])"
    assert inside(kit, script, spec={"work": bind, "hidden": ("/etc/ssl/private",)}).splitlines() == ["30", "[]"]
    assert sorted(os.listdir(shown)) == ["file", "new"]


def test_new_keyring_is_the_jobs_own(kit):
    result = subprocess.run(["grep", "-c", "xos-secret", "/proc/keys"], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "0"  # the test process itself was not given it either
