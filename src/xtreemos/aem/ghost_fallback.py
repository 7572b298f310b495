"""native/ghost.c in Python, for machines without a compiler: the `xos` command and the local shadow of a job.

Run as `python -I -S ghost_fallback.py ARGS` and nothing else of the package is imported: start-up is what counts, so only built-in
modules are used (`_socket` instead of `socket` saves 8 ms). Same messages and rules as ghost.c, which explains them; what differs:
signals come through a wakeup descriptor instead of a signalfd, and a TTIN or TTOU sent by `kill` is not passed on.
"""

from __future__ import annotations

import _socket as socket
import errno
import fcntl
import posix
import resource
import select
import sys
import termios
import time

TYPE_CHECKING = False  # typing takes 5 ms to import
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

FAST = {"run", "sub", "ps", "kill", "wait", "logs", "attach", "nodes", "whoami", "top", "ssh-config"}
ALIASES = {"xsub", "xps", "xkill", "xwait"}
OWN_NAMES = {"xos", "ghost_fallback.py"}
PART_BYTES = 60000
MESSAGE_BYTES_MAX = 65536 + 16
INPUT_BYTES = 16384
BACKGROUND_POLL_MS = 200
RECONNECT_S = 30.0
RECONNECT_EVERY_MS = 100
UNANSWERED_SIGNAL_S = 1.0
EXIT_TRY_LATER = 75
NOT_LOGGED_IN = 69
KERNEL_TERMIOS_BYTES = 36
SOCK_CLOEXEC = 0o2000000
ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
JOB_CONTROL = {signal.SIGTTIN, signal.SIGTTOU}
# Kernel struct termios: c_iflag, c_oflag, c_cflag, c_lflag (u32 each), c_line, c_cc[19].
IFLAG_OFF = (
    termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL
    | termios.IXON | termios.IXOFF | termios.IXANY
)  # fmt: skip
LFLAG_OFF = termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN
CC_AT = 17


def pack(value: object) -> bytes:
    """Encode as MessagePack: None, bool, int, bytes, str (below 32 bytes), list, dict."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return (b"\xd3" + value.to_bytes(8, "big", signed=True)) if value < 0 else (b"\xcf" + value.to_bytes(8, "big"))
    if isinstance(value, bytes):
        return b"\xc6" + len(value).to_bytes(4, "big") + value
    if isinstance(value, str):
        return bytes([0xA0 | len(value)]) + value.encode()
    if isinstance(value, list):
        return b"\xdd" + len(value).to_bytes(4, "big") + b"".join(map(pack, value))
    assert isinstance(value, dict)
    return b"\xdf" + len(value).to_bytes(4, "big") + b"".join(pack(k) + pack(v) for k, v in value.items())


def raw_of(saved: bytes) -> bytes:
    """Return kernel termios `saved` changed to raw mode."""
    flags = [int.from_bytes(saved[at : at + 4], "little") for at in (0, 4, 8, 12)]
    flags[0] &= ~IFLAG_OFF
    flags[1] &= ~termios.OPOST
    flags[2] = flags[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    flags[3] &= ~LFLAG_OFF
    keys = bytearray(saved[16:])
    keys[1 + termios.VMIN], keys[1 + termios.VTIME] = 1, 0
    return b"".join(flag.to_bytes(4, "little") for flag in flags) + bytes(keys)


class Ghost:
    """The whole state of this process. `mirror` does not return."""

    def __init__(self, words: list[str], folder: str) -> None:
        self.words = words
        self.path = f"{folder}/ghost.sock"
        self.agent = self.connect(self.path)
        self.isatty = [False] * 3
        self.terminal = self.in_fd = -1
        self.out_fd = {1: 1, 2: 2}
        self.may_be_raw = self.accepted = self.gate_open = self.input_ended = False
        self.raw_wanted = self.raw_on = False
        self.was_foreground = self.resumable = True
        self.saved = self.raw = b""
        self.size = b"\0\0\0\0"
        self.typed = self.dying = self.typed_ahead = 0
        self.dying_at = 0.0
        self.token = self.pending = b""
        self.pending_stream = 1
        self.ignored: list[int] = []
        self.wake_read = -1
        self.hello = b""

    # -- small things ----------------------------------------------------------------------------------------------------

    @staticmethod
    def connect(path: str) -> socket.socket | None:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | SOCK_CLOEXEC, 0)
        try:
            one.connect(path)
        except OSError:
            one.close()
            return None
        return one

    def say(self, text: str) -> None:
        try:
            posix.write(2, b"xos: " + text.encode() + (b"\r\n" if self.raw_on else b"\n"))
        except OSError:
            return  # nobody to tell

    def tell(self, message: bytes, fds: list[int] | None = None) -> bool:
        assert self.agent is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, "little") for fd in fds))] if fds else []
        try:
            self.agent.sendmsg([message], rights, socket.MSG_NOSIGNAL)
        except OSError:
            return False  # a lost agent shows as end of file on the next recv
        return True

    def in_foreground(self) -> bool:
        if self.terminal < 0:
            return False
        try:
            return posix.tcgetpgrp(self.terminal) == posix.getpgrp()
        except OSError as error:
            return error.errno == errno.ENOTTY

    def settings(self) -> bytes:
        return fcntl.ioctl(self.terminal, termios.TCGETS, bytes(KERNEL_TERMIOS_BYTES))

    def window(self) -> bytes:
        return fcntl.ioctl(self.terminal, termios.TIOCGWINSZ, bytes(8))[:4]

    # -- start -----------------------------------------------------------------------------------------------------------

    def look_at_descriptors(self) -> None:
        for number in range(3):
            mode = posix.fstat(number).st_mode
            self.isatty[number] = posix.isatty(number)
            if self.isatty[number] and self.terminal < 0:
                self.terminal = number
            if mode & 0o170000 != 0o020000:
                self.resumable = False
        if self.terminal >= 0:
            self.size = self.window()
            self.may_be_raw = self.isatty[0] and self.isatty[1] and self.is_alone()

    @staticmethod
    def parent_of(pid: int) -> int:
        try:
            fd = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY)
        except OSError:
            return 0
        text = posix.read(fd, 512)
        posix.close(fd)
        return int(text.rpartition(b") ")[2].split()[1])

    def is_alone(self) -> bool:
        ancestors, pid = set(), posix.getppid()
        while pid > 1:
            ancestors.add(pid)
            pid = self.parent_of(pid)
        for name in posix.listdir("/proc"):
            if name.isdigit() and int(name) != posix.getpid() and int(name) not in ancestors:
                try:
                    if posix.getpgid(int(name)) == posix.getpgrp():
                        return False
                except OSError:
                    continue  # ended meanwhile
        return True

    def take_signals(self) -> None:
        self.wake_read, wake_write = posix.pipe()
        for fd in (self.wake_read, wake_write):
            posix.set_blocking(fd, False)
        for number in range(1, 65):
            try:
                if signal.getsignal(number) == signal.SIG_IGN and number not in {
                    signal.SIGPIPE,
                    signal.SIGXFSZ,
                }:  # python ignores these two
                    self.ignored.append(number)
                elif number not in JOB_CONTROL:
                    signal.signal(number, lambda *_: None)
            except (OSError, ValueError):
                continue  # KILL, STOP, and the C library's own
        signal.pthread_sigmask(signal.SIG_BLOCK, JOB_CONTROL)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def make_hello(self) -> None:
        mask = posix.umask(0)
        posix.umask(mask)
        try:
            cwd = posix.getcwdb()
        except OSError:
            cwd = b"/"
        limits = [[value % 2**64 for value in resource.getrlimit(number)] for number in range(16)]
        rows, cols = int.from_bytes(self.size[:2], "little"), int.from_bytes(self.size[2:], "little")
        self.hello = pack({
            "argv": [word.encode(errors="surrogateescape") for word in self.words],
            "env": [name + b"=" + value for name, value in posix.environ.items()],
            "cwd": cwd,
            "umask": mask,
            "pid": posix.getpid(),
            "pgrp": posix.getpgrp(),
            "rlimits": limits,
            "nice": posix.getpriority(posix.PRIO_PROCESS, 0),
            "tty": {"rows": rows, "cols": cols, "termios_ok": self.may_be_raw} if self.terminal >= 0 else None,
            "isatty": self.isatty,
            "ignored": self.ignored,
        })  # fmt: skip

    def fds(self) -> list[int]:
        return [number for number in range(3) if not self.isatty[number]] + ([self.terminal] if self.may_be_raw else [])

    def send_hello(self) -> bool:
        at = 0
        while len(self.hello) - at > PART_BYTES:
            if not self.tell(b"h" + self.hello[at : at + PART_BYTES]):
                return False
            at += PART_BYTES
        return self.tell(b"H" + self.hello[at:], self.fds())

    def open_terminals(self) -> None:
        def anew(fd: int, flags: int) -> int:
            try:
                return posix.open(f"/proc/self/fd/{fd}", flags | posix.O_NONBLOCK | posix.O_NOCTTY)
            except OSError:
                return fd

        if self.isatty[0]:
            self.in_fd = anew(0, posix.O_RDONLY)
        for number in (1, 2):
            if self.isatty[number]:
                self.out_fd[number] = anew(number, posix.O_WRONLY)

    # -- terminal --------------------------------------------------------------------------------------------------------

    def enter_raw(self) -> None:
        now = self.settings()
        if now != self.raw:  # else still ours after a stop: `saved` is the true one
            self.saved, self.raw = now, raw_of(now)
        self.tell(b"Q" + self.saved + self.raw)
        fcntl.ioctl(self.terminal, termios.TCSETS, self.raw)
        self.raw_on = True
        self.typed_ahead = int.from_bytes(fcntl.ioctl(self.terminal, termios.FIONREAD, bytes(4)), "little")

    def leave_raw(self) -> None:
        if not self.raw_on:
            return
        self.raw_on = False
        try:
            if self.in_foreground() and self.settings() == self.raw:
                fcntl.ioctl(self.terminal, termios.TCSETS, self.saved)
        except OSError as error:
            if error.errno != errno.EIO:  # hung up: nothing to restore
                raise
        if self.agent is not None:
            self.tell(b"Q")

    def tell_size(self, always: bool = False) -> bool:
        if self.terminal < 0:
            return False
        try:
            size = self.window()
        except OSError:
            return False  # hung up
        if not always and size == self.size:
            return False
        self.size = size
        self.tell(b"W" + size)
        return True

    def note_typed(self, data: bytes) -> None:
        keys = self.saved[CC_AT:]
        last = data[-1]
        by_key = {keys[termios.VINTR]: signal.SIGINT, keys[termios.VQUIT]: signal.SIGQUIT, keys[termios.VSUSP]: signal.SIGTSTP}
        self.typed = by_key.get(last, 0) if last else 0

    def read_terminal(self) -> None:
        try:
            data = posix.read(self.in_fd, INPUT_BYTES)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EINTR} or not self.in_foreground():
                return
            data = b""
        if data:
            if self.raw_on:
                early, self.typed_ahead = data[: self.typed_ahead], max(0, self.typed_ahead - len(data))
                data = (
                    early.replace(b"\0", self.saved[CC_AT + termios.VEOF :][:1]) + data[len(early) :]
                )  # ghost.c: mend_typed_ahead
                self.note_typed(data)
            self.tell(b"I" + data)
        else:
            self.tell(b"E")
            self.input_ended = True

    def write_pending(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})
        try:
            self.pending = self.pending[posix.write(self.out_fd[self.pending_stream], self.pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self.pending = b""  # the terminal is gone; the job hears of it by SIGHUP
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})

    # -- ends ------------------------------------------------------------------------------------------------------------

    def die_by(self, number: int) -> None:
        typed = self.raw_on and self.typed == number and number in {signal.SIGINT, signal.SIGQUIT} and self.in_foreground()
        self.leave_raw()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        posix.kill(0 if typed else posix.getpid(), number)
        posix._exit(128 + number)  # noqa: SLF001  # not reached, unless the default action is not death

    def stop_by(self, number: int) -> None:
        group = self.raw_on and number == signal.SIGTSTP == self.typed and self.in_foreground()
        self.leave_raw()
        if number != signal.SIGSTOP:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        posix.kill(0 if group else posix.getpid(), number)
        if number in JOB_CONTROL:
            signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        elif number != signal.SIGSTOP:
            signal.signal(number, lambda *_: None)
        others = bytes(sig for sig in self.woken() if sig != signal.SIGCONT)
        self.typed = 0
        self.tell_size()
        self.tell(b"C\1")
        self.on_signals(others)

    def woken(self) -> bytes:
        try:
            return posix.read(self.wake_read, 4096)
        except BlockingIOError:
            return b""

    def on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                if not self.tell_size() or not self.raw_wanted:
                    self.tell(b"S" + bytes([number]))  # a far terminal that changes its size signals the job itself
            elif number == signal.SIGCONT:
                self.raw_on = False
                self.tell_size()
                self.tell(b"C\0")
            elif number != signal.SIGCHLD:
                self.tell(b"S" + bytes([number]))
                if not self.accepted and number in ENDING and not self.dying:
                    self.dying, self.dying_at = number, time.monotonic() + UNANSWERED_SIGNAL_S

    # -- messages --------------------------------------------------------------------------------------------------------

    def on_accepted(self, body: bytes) -> None:
        self.token = body or self.token
        if self.accepted:
            return
        self.accepted, self.dying, self.hello = True, 0, b""
        for number in (0, 1):
            if not self.isatty[number] and posix.fstat(number).st_mode & 0o170000 != 0o020000:
                hole = posix.open("/dev/null", posix.O_WRONLY if number else posix.O_RDONLY)
                posix.dup2(hole, number)
                posix.close(hole)

    def go_to(self, vo: bytes) -> None:
        assert self.agent is not None
        self.agent.close()
        self.path = f"{self.path.rpartition('/')[0]}/ghost-{vo.decode()}.sock"
        self.agent = self.connect(self.path)
        if self.agent is None or not self.send_hello():
            name = vo.decode()
            self.say(f"you are not logged in to VO {name}; log in first: xos login USER@{name}")
            posix._exit(NOT_LOGGED_IN)  # noqa: SLF001  # nothing of ours to flush

    def on_message(self, message: bytes) -> None:
        tag, body = message[:1], message[1:]
        first = body[0] if body else 0
        if tag == b"A":
            self.on_accepted(body)
        elif tag in b"OP":
            cooked = self.raw_wanted and not self.raw_on  # ghost.c: without_double_returns
            self.pending, self.pending_stream = body.replace(b"\r\n", b"\n") if cooked else body, 1 if tag == b"O" else 2
            self.write_pending()
        elif tag == b"M":
            self.raw_wanted = bool(first) and self.may_be_raw
            if not self.raw_wanted:
                self.leave_raw()
        elif tag == b"G":
            self.gate_open = bool(first)
        elif tag == b"L":
            posix.write(2, body + (b"\r\n" if self.raw_on else b"\n"))
        elif tag == b"T":
            self.stop_by(first)
        elif tag == b"V" and not self.accepted:
            self.go_to(body)
        elif tag == b"F" and not self.accepted:
            exec_python(self.words)
        elif tag == b"K":
            self.die_by(first)
        elif tag == b"X":
            self.leave_raw()
            posix._exit(first)  # noqa: SLF001  # nothing of ours to flush

    def read_agent(self) -> None:
        assert self.agent is not None
        try:
            message = self.agent.recv(MESSAGE_BYTES_MAX)
        except OSError:
            message = b""
        if message:
            self.on_message(message)
        else:
            self.reconnect()

    def give_up(self, text: str) -> None:
        self.say(text)
        posix._exit(EXIT_TRY_LATER)  # noqa: SLF001

    def reconnect(self) -> None:
        assert self.agent is not None
        self.agent.close()
        self.agent = None
        self.leave_raw()
        if not self.accepted:
            self.give_up("the session's agent ended before the program was started; try again")
        if not self.resumable or not self.token:
            self.give_up("the session's agent ended and took this program's pipes with it; look at `xos ps`")
        self.say("the session's agent is gone; waiting 30 s for it to come back (Ctrl-C gives up)")
        give_up_at = time.monotonic() + RECONNECT_S
        poller = select.poll()
        poller.register(self.wake_read, select.POLLIN)
        while time.monotonic() < give_up_at:
            poller.poll(RECONNECT_EVERY_MS)
            for number in self.woken():
                if number in ENDING:
                    self.die_by(number)
                if number == signal.SIGTSTP:
                    posix.kill(posix.getpid(), signal.SIGSTOP)
            self.agent = self.connect(self.path)
            if self.agent is not None:
                flags = sum(1 << bit for bit, on in enumerate([*self.isatty, self.may_be_raw]) if on)
                self.tell(b"R" + bytes([flags]) + self.token, self.fds())
                self.gate_open = False
                self.tell_size(always=True)
                return
        self.give_up("the session's agent did not come back within 30 s; the program may still run: see `xos ps`")

    # -- the loop --------------------------------------------------------------------------------------------------------

    def follow_foreground(self) -> bool:
        foreground = self.in_foreground()
        if foreground and not self.was_foreground:
            self.tell_size()
        self.was_foreground = foreground
        if self.raw_wanted and foreground and not self.raw_on:
            self.enter_raw()
        return foreground

    def timeout_ms(self, foreground: bool, back_off: bool) -> int | None:
        if self.dying:
            left = self.dying_at - time.monotonic()
            if left <= 0:
                self.die_by(self.dying)
            return int(left * 1000) + 1
        return BACKGROUND_POLL_MS if (self.raw_wanted and not foreground) or back_off else None

    def mirror(self) -> None:
        back_off = False
        while True:
            foreground = self.terminal >= 0 and self.follow_foreground()
            poller = select.poll()
            poller.register(self.wake_read, select.POLLIN)
            if self.pending:
                poller.register(self.out_fd[self.pending_stream], select.POLLOUT)
            elif self.agent is not None:
                poller.register(self.agent.fileno(), select.POLLIN)
            if self.gate_open and self.in_fd >= 0 and not self.input_ended and not back_off:
                poller.register(self.in_fd, select.POLLIN)
            ready = {fd for fd, _ in poller.poll(self.timeout_ms(foreground, back_off))}
            back_off = False
            if self.wake_read in ready:
                self.on_signals(self.woken())
            if self.pending:
                if self.out_fd[self.pending_stream] in ready:
                    self.write_pending()
            elif self.agent is not None and self.agent.fileno() in ready:
                self.read_agent()
            if self.in_fd in ready:
                if self.in_foreground():
                    self.read_terminal()
                else:
                    back_off = True


def exec_python(words: list[str]) -> None:
    """Become the whole command, in this checkout's Python."""
    for number in range(1, 65):
        try:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            continue
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_CONTROL)
    here = __file__
    for _ in range(4):
        here = here.rpartition("/")[0]
    python = f"{here}/.venv/bin/python"
    posix.execv(python, [python, "-I", "-m", "xtreemos.cli", *words[1:]])


def whole_command(name: str, words: list[str]) -> list[str]:
    """Return the command line behind the name we were called by (`xsub`, or a link called gcc)."""
    base = name.rpartition("/")[2]
    if base in OWN_NAMES:
        return ["xos", *words]
    return ["xos", base[1:], *words] if base in ALIASES else ["xos", "run", "--", base, *words]


def is_fast(words: list[str]) -> bool:
    """Tell whether the session's agent answers this command."""
    at = 1
    while at < len(words) and words[at].startswith("-"):
        if words[at] not in {"--grid", "--vo"} and not words[at].startswith(("--grid=", "--vo=")):
            return False
        at += 2 if "=" not in words[at] else 1
    return at < len(words) and words[at] in FAST


def agent_folder() -> str | None:
    """Return the folder of the agent's sockets, None if it is not ours alone."""
    environ = {
        name.decode(errors="replace"): value.decode(errors="surrogateescape")
        for name, value in posix.environ.items()
        if name[:1] == b"X"
    }
    folder = environ.get("XOS_AGENT_DIR")
    runtime = environ.get("XDG_RUNTIME_DIR")
    try:
        if not folder and runtime and posix.stat(runtime).st_mode & 0o170000 == 0o040000:
            folder = f"{runtime}/xtreemos"
    except OSError:
        pass
    folder = folder or f"/tmp/xtreemos-{posix.getuid()}"  # noqa: S108  # checked below
    try:
        found = posix.lstat(folder)
    except OSError:
        return None
    ours = found.st_mode & 0o170000 == 0o040000 and found.st_uid == posix.geteuid() and not found.st_mode & 0o077
    return folder if ours else None


def fill_holes() -> None:
    """Put the wrong direction of /dev/null (EBADF to whoever uses it) where a standard descriptor is closed, before the socket gets there."""
    for number in range(3):
        try:
            posix.fstat(number)
        except OSError:
            posix.open("/dev/null", posix.O_RDONLY if number else posix.O_WRONLY)


def main(name: str, arguments: list[str]) -> None:
    """Be a ghost if an agent is there, else the Python command line."""
    signal.signal(signal.SIGINT, signal.SIG_DFL if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN else signal.SIG_IGN)
    words = whole_command(name, arguments)
    fill_holes()
    folder = agent_folder() if is_fast(words) else None
    ghost = Ghost(words, folder) if folder else None
    if ghost is None or ghost.agent is None:
        exec_python(words)
        return
    ghost.look_at_descriptors()
    ghost.take_signals()
    ghost.make_hello()
    if not ghost.send_hello():
        exec_python(words)
    ghost.open_terminals()
    ghost.mirror()


if __name__ == "__main__":
    main(sys.argv[0], sys.argv[1:])
