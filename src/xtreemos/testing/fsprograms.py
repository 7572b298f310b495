"""Everyday programs as scripts that check what they did: what a file system for people has to carry, on one node and from two at once.

A `Program` is a list of steps; a step is scripts that run at the same time, each on its node, all in one folder of the user's home. A script
is for `bash -e` and fails if anything is not as on a local disk. On a local disk every step runs on the one machine there is. Who runs them
(`bench/fs_programs.py`, tests/t5_system/test_fs_programs.py) says where. `FILES` in the environment is the size of the source tree,
`ROUNDS` how often each of two writes into a database, `MIB` the size of large files.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """Scripts that run at the same time, rows of (node, script). `timed`: what it takes is counted."""

    scripts: tuple[tuple[str, str], ...]
    timed: bool = True


@dataclass(frozen=True, slots=True)
class Program:
    """What is tried, the tool that must be installed for it, and the steps in order."""

    name: str
    tool: str
    steps: tuple[Step, ...]


def on(node: str, script: str) -> Step:
    """A step on one node."""
    return Step(((node, script),))


def both(first: str, second: str) -> Step:
    """A step on two nodes at the same time."""
    return Step((("n1", first), ("n2", second)))


def before(script: str) -> Step:
    """A step on n1 that is not counted: what the program needs."""
    return Step((("n1", script),), timed=False)


SOURCE = r"""
for n in $(seq 0 $((${FILES:-200} - 1))); do
    mkdir -p src/part$((n % 10))
    for l in 1 2 3 4 5 6 7 8; do echo "int f${n}_$l(int x) { return x * $l + $n; }"; done > src/part$((n % 10))/file$n.c
done
echo 'int f0_1(int); int main(void) { return f0_1(0); }' > src/main.c
cat > src/Makefile <<'EOF'
SRC := $(wildcard *.c part*/*.c)
OBJ := $(SRC:.c=.o)
prog: $(OBJ)
	$(CC) -o $@ $^
half1: $(filter part0% part1% part2% part3% part4%,$(OBJ))
half2: $(filter part5% part6% part7% part8% part9%,$(OBJ))
%.o: %.c
	$(CC) -O0 -c -o $@ $<
EOF
"""
_AUTHOR = "git config user.name a; git config user.email a@example.org;"
_COMMITTED = f"{SOURCE} cd src; git init -q .; {_AUTHOR} git add .; git commit -qm one"
_CLEAN = 'test -z "$(git status --porcelain)"'
GIT = (
    Program("git init add commit", "git", (before(SOURCE), on("n1", f"cd src; git init -q .; {_AUTHOR} git add .; git commit -qm one"))),
    Program("git status", "git", (before(_COMMITTED), on("n1", f"cd src; for n in 1 2 3 4 5; do {_CLEAN}; done"))),
    Program("git on two nodes", "git", (
        before(_COMMITTED),
        on("n2", f"cd src; {_CLEAN}; echo '// x' >> main.c; git commit -qam two"),
        on("n1", f"git clone -q src copy; cd copy; git gc -q; {_CLEAN}; test $(git log --oneline | wc -l) = 2"),
        on("n2", f"cd copy; git fsck --strict; git checkout -q HEAD~1; git checkout -q -; {_CLEAN}; git -C ../src fsck --strict"),
    )),
)  # fmt: skip

COUNTER = r"""python3 - <<'PY'
import os, sqlite3
db = sqlite3.connect("count.db", timeout=60, isolation_level=None)
for _ in range(int(os.environ.get("ROUNDS", "60"))):
    db.execute("begin immediate")
    db.execute("update t set n = n + 1")
    db.execute("insert into log values (randomblob(500))")
    db.execute("commit")
PY
"""
_COUNTED = r"""
test "$(sqlite3 count.db 'pragma integrity_check; select n = 2 * '${ROUNDS:-60}' from t; select count(*) = n from log, t')" = $'ok\n1\n1'
"""
_TABLES = "create table t(n); insert into t values(0); create table log(what)"
_WAL = before(f'sqlite3 count.db "pragma journal_mode=wal; {_TABLES}"')
SQLITE = (
    Program("sqlite, journal, two nodes at once", "sqlite3", (
        before(f'sqlite3 count.db "{_TABLES}"'), both(COUNTER, COUNTER), on("n1", _COUNTED), on("n2", _COUNTED),
    )),
    Program("sqlite, WAL, two programs of a node", "sqlite3", (_WAL, Step((("n1", COUNTER), ("n1", COUNTER))), on("n1", _COUNTED))),
    Program("sqlite, WAL, two nodes in turns", "sqlite3", (_WAL, on("n1", COUNTER), on("n2", COUNTER), on("n1", _COUNTED))),
    Program("sqlite, WAL, two nodes at once", "sqlite3", (_WAL, both(COUNTER, COUNTER), on("n1", _COUNTED), on("n2", _COUNTED))),
)  # fmt: skip

POSTGRES = r"""
initdb -D pg -A trust >initdb.log
begin() { pg_ctl -D pg -w -o "-k /tmp -h '' -p 5433" -l pg.log start >/dev/null; }
ask() { psql -h /tmp -p 5433 -Atc "$1" bench; }
begin
trap 'pg_ctl -D pg -m immediate stop >/dev/null || true' EXIT
createdb -h /tmp -p 5433 bench
pgbench -h /tmp -p 5433 -q -i -s 2 bench 2>/dev/null
pgbench -h /tmp -p 5433 -n -c 2 -t 150 bench
pg_ctl -D pg -m immediate stop >/dev/null
begin
test "$(ask 'select count(*) from pgbench_history')" = 300
test "$(ask 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)')" = t
pg_ctl -D pg -m fast stop >/dev/null
trap - EXIT
"""

MAKE = (
    Program("make -j2", "make", (before(SOURCE), on("n1", "make -s -j2 -C src"), on("n2", "make -q -C src; src/prog"))),
    Program("make on two nodes at once", "make", (
        before(SOURCE),
        both("make -s -C src half1", "make -s -C src half2"),
        on("n2", "! make -q -C src; make -s -C src; src/prog"),
        on("n1", "make -q -C src; src/prog; sleep 0.01; touch src/main.c"),
        on("n2", "! make -q -C src; make -s -C src; make -q -C src"),
    )),
)  # fmt: skip

VIM = r"""cat > drive.py <<'PY'
import os, pty, select, time
def until(fd, true, seconds=20):
    seen, end = b"", time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, seen
        if select.select([fd], [], [], 0.05)[0]:
            seen += os.read(fd, 65536)
def edit():
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execvp("vim", ["vim", "-u", "NONE", "-N", "--cmd", "set directory=. backup undofile", "text"])
    until(fd, lambda: os.path.exists(".text.swp"))
    return pid, fd
pid, fd = edit()
os.write(fd, b"ihello from vim\x1b:w\r")
until(fd, lambda: os.path.exists("text") and open("text").read() == "hello from vim\n")
os.write(fd, b"osecond line\x1b:preserve\r")
until(fd, lambda: b"second line" in open(".text.swp", "rb").read())
os.kill(pid, 9)
os.waitpid(pid, 0)
assert os.path.exists(".text.swp")
PY
python3 drive.py
TERM=xterm script -qec "vim -u NONE -N -r text -c wq" /dev/null </dev/null >/dev/null
grep -qx 'second line' text
rm -f .text.swp
"""

WHEEL = r"""python3 - <<'PY'
import zipfile
files = {f"small/m{n}.py": f"VALUE = {n}\n" for n in range(100)}
files["small/__init__.py"] = "ANSWER = 42\n"
files["small-1.0.dist-info/METADATA"] = "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n"
files["small-1.0.dist-info/WHEEL"] = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
files["small-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files) + "small-1.0.dist-info/RECORD,,\n"
with zipfile.ZipFile("small-1.0-py3-none-any.whl", "w") as archive:
    for name, text in files.items():
        archive.writestr(name, text)
PY
"""
_PIP = "--no-index --no-cache-dir --disable-pip-version-check ./small-1.0-py3-none-any.whl"
_BUNDLED = (
    "PIP=$(ls /usr/share/python-wheels/pip-*.whl $(python3 -c 'import ensurepip; print(ensurepip.__path__[0])')/_bundled/pip-*.whl "
    "2>/dev/null | head -1)/pip"
)
VENV = (
    Program("venv and pip install", "pip3", (
        before(WHEEL),
        on("n1", f"python3 -m venv v; v/bin/pip -q install {_PIP}; v/bin/python -c 'import small.m7; assert small.ANSWER == 42'"),
        on("n2", "v/bin/python -c 'import small.m99'; v/bin/pip -q uninstall -y small; ! v/bin/python -c 'import small' 2>/dev/null"),
    )),
    Program("venv without pip, pip install", "python3", (
        before(WHEEL),
        on("n1", f"{_BUNDLED}; python3 -m venv --without-pip v; v/bin/python $PIP -q install {_PIP}; v/bin/python -c 'import small.m7'"),
        on("n2", "v/bin/python -c 'import small.m99; assert small.ANSWER == 42'"),
    )),
)  # fmt: skip

KINDS = r"""
mkfifo f; (echo through > f) & test "$(cat f)" = through; wait $!
python3 - <<'PY'
import ctypes, mmap, os, socket
a = socket.socket(socket.AF_UNIX); a.bind("sock"); a.listen()
b = socket.socket(socket.AF_UNIX); b.connect("sock"); c, _ = a.accept()
b.send(b"x"); assert c.recv(9) == b"x"
fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(fd, b"unnamed"); os.link(f"/proc/self/fd/{fd}", "named", src_dir_fd=fd, follow_symlinks=True)
assert open("named").read() == "unnamed"
libc = ctypes.CDLL(None); watch = libc.inotify_init()
CREATED, DELETED, CLOSED, RENAMED_TO = 0x100, 0x200, 0x8, 0x80
assert libc.inotify_add_watch(watch, b".", CREATED | DELETED | CLOSED | RENAMED_TO) > 0
open("seen", "w").write("x"); os.rename("seen", "seen2"); os.unlink("seen2")
events = os.read(watch, 4096); assert events.count(b"seen") >= 4, events
m = open("map", "wb+"); m.truncate(8192); v = mmap.mmap(m.fileno(), 8192)
v[4000:4005] = b"hello"; v.flush(); assert open("map", "rb").read()[4000:4005] == b"hello"
PY
echo a > h1; ln h1 h2; test $(stat -c %h h2) = 2; echo b >> h2; test "$(cat h1)" = $'a\nb'; rm h1; test $(stat -c %h h2) = 1
exec 9>lock; flock 9; ! flock -n lock true; flock -u 9; flock -n lock true
"""
_LOCKED = "for n in $(seq ${ROUNDS:-60}); do flock lock sh -c 'echo $(($(cat n) + 1)) > n'; done"
_COPIES = r"""
cp -r src src2; diff -r src src2
cp --reflink=auto big big2; cmp big big2
cp --sparse=always hole hole2; cmp hole hole2; test $(du -k hole2 | cut -f1) -lt 1024
cp --sparse=auto hole hole3; cmp hole hole3; test $(du -k hole3 | cut -f1) -lt 1024
"""
_DIRECT = r"""
dd if=big of=copy bs=1M oflag=direct status=none; dd if=copy bs=64k iflag=direct status=none | cmp - big
dd if=big of=sync bs=256k count=8 oflag=dsync status=none; cmp -n 2097152 big sync
dd if=big of=f bs=4k count=1000 conv=fsync status=none; cmp -n 4096000 big f
"""
_RANDOM = "head -c ${MIB:-32}M /dev/urandom > big"
_HOLE = "truncate -s $((2 * ${MIB:-32}))M hole; printf x | dd of=hole bs=1 seek=3000000 conv=notrunc status=none"
SHELL = (
    Program("rsync -a twice", "rsync", (
        before(SOURCE),
        on("n1", 'rsync -a src/ dst; test -z "$(rsync -ai src/ dst)"; diff -r src dst'),
        on("n2", 'test -z "$(rsync -aci src/ dst)"'),
    )),
    Program("tar, untar, diff -r", "tar", (
        before(SOURCE),
        on("n1", "tar -cf a.tar src; mkdir out; tar -xf a.tar -C out; diff -r src out/src; tar -df a.tar -C out"),
        on("n2", "diff -r src out/src; tar -df a.tar"),
    )),
    Program("find and grep", "grep", (
        before(SOURCE),
        on("n1", "test $(find src -name 'file*.c' | wc -l) = ${FILES:-200}; test $(grep -rl 'f7_' src | wc -l) = 1; cat src/*/* >/dev/null"),
    )),
    Program("cp: folders, reflink, sparse", "cp", (before(f"{SOURCE} {_RANDOM}; {_HOLE}"), on("n1", _COPIES))),
    Program("dd: O_DIRECT, O_DSYNC, fsync", "dd", (before(_RANDOM), on("n1", _DIRECT), on("n2", "cmp copy big"))),
    Program("fifo, socket, link, flock, O_TMPFILE, inotify, mmap", "python3", (on("n1", KINDS),)),
    Program("flock on two nodes", "flock", (before("echo 0 > n; echo > lock"), both(_LOCKED, _LOCKED), on("n1", "test $(cat n) = $((2 * ${ROUNDS:-60}))"))),
    Program("append on two nodes", "bash", (
        both(*(f"for n in $(seq 200); do echo {node} record $n >> log; done" for node in ("n1", "n2"))),
        on("n1", "test $(wc -l < log) = 400; test $(grep -cE '^n[12] record [0-9]+$' log) = 400"),
    )),
    Program("1,000 small files: written, read, read elsewhere", "python3", (
        on("n1", "mkdir d; python3 -c \"import os\nfor n in range(1000): open(f'd/{n}', 'wb').write(os.urandom(4096))\""),
        on("n1", "test $(cat d/* | wc -c) = 4096000"), on("n2", "test $(cat d/* | wc -c) = 4096000"),
    )),
    Program("touch 10,000", "touch", (on("n1", "mkdir d; cd d; seq 10000 | xargs touch"),)),
    Program("ls -l of 10,000", "ls", (before("mkdir d; cd d; seq 10000 | xargs touch"), on("n1", "test $(ls -l d | wc -l) = 10001"),
        on("n2", "test $(ls -l d | wc -l) = 10001"))),
    Program("rm -rf of 10,000", "rm", (before("mkdir d; cd d; seq 10000 | xargs touch"), on("n1", "rm -rf d; ! test -e d"))),
)  # fmt: skip

_FIO = (
    "fio --name=x --ioengine={} --rw=randrw --bssplit=4k/50:16k/50 --size=24m --numjobs=2 --verify=crc32c --verify_fatal=1 "
    "--fallocate=none --group_reporting --output=out {}; grep -q 'err= 0' out"
)
_STRESS = (
    "stress-ng --temp-path . --verify --metrics-brief --timeout {}s --{} 1 >out 2>&1 || {{ cat out; false; }}; "
    "! grep -E ' fail:|FAILED|unsuccessful' out"
)
STRESSORS = (
    "access", "chattr", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany", "dup", "fallocate",
    "fcntl", "fiemap", "file-ioctl", "filename", "flock", "fpunch", "fstat", "getdent", "handle", "hdd", "inotify", "io",
    "iomix", "lease", "link", "locka", "lockf", "lockofd", "mknod", "open", "readahead", "rename",
    "revio", "seek", "sendfile", "splice", "symlink", "sync-file", "touch", "utime", "verity", "xattr",
)  # fmt: skip
STRESS_S = 3
LOADS = (
    Program("fio verify, read and write", "fio", (on("n1", _FIO.format("psync", "")),)),
    Program("fio verify, mmap", "fio", (on("n1", _FIO.format("mmap", "")),)),
    Program("fio verify, O_DIRECT libaio", "fio", (on("n1", _FIO.format("libaio", "--direct=1 --iodepth=8")),)),
    Program("dbench 8 s", "dbench", (on("n1", "dbench -t 8 -D . 2 | grep Throughput"),)),
    Program("bonnie++", "bonnie++", (on("n1", "bonnie++ -d . -s 64 -r 16 -n 1 -q 2>/dev/null"),)),
    *(Program(f"stress-ng {name}", "stress-ng", (on("n1", _STRESS.format(STRESS_S, name)),)) for name in STRESSORS),
)

PROGRAMS: tuple[Program, ...] = (
    *GIT, *SQLITE, Program("PostgreSQL initdb, pgbench, crash", "psql", (on("n1", POSTGRES),)), *MAKE,
    Program("vim: write, swap file, recovery", "vim", (on("n1", VIM), on("n2", "grep -qx 'second line' text"))), *VENV, *SHELL, *LOADS,
)  # fmt: skip
