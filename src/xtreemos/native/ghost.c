/*
 * ghost.c: the `xos` command, and the local shadow of a job that runs elsewhere.
 *
 * Build:  gcc -O2 -std=gnu11 -Wall -Wextra -Werror -static -s -o build/bin/xos src/xtreemos/native/ghost.c
 *         (leave out -static where there is no libc.a: it works the same, start-up is 0.3 ms slower)
 *
 * What it does: for the few subcommands that the session's agent answers, it hands the whole command line, environment and
 * the non-terminal standard descriptors to the agent, and from then on behaves as the job does: same stop, same exit code,
 * death by the same signal. Anything else is executed as `python -m xtreemos.cli`.
 * What it must not know: options of the subcommands, nodes, VOs, jobs. The agent parses; see docs/notes/0001-architecture.md,
 * "Agent sockets", and aem/agent/ghostwire.py for every message. aem/ghost_fallback.py is the same thing in Python.
 *
 * Dangers, each of which was a real failure once:
 * - Signals are blocked and read from a signalfd, so nothing here runs in a handler. A signal that was ignored when we were
 *   started is left out of the mask: a blocked signal is queued even if ignored, and `nohup` would be undone.
 * - Only descriptors that are no terminal are given away. A terminal is read here, in the shell's process group, because the
 *   kernel's job control looks at the process that reads. A background ghost never reads it.
 * - Our own copies of passed pipes are closed, else the neighbours in a pipeline never see end of file or SIGPIPE.
 * - SIGTTOU and SIGTTIN are blocked here, which makes terminal ioctls work from the background; therefore each of them
 *   first asks whether we are in the foreground. The shell's settings are not ours to change.
 * - O_NONBLOCK belongs to the open file description that the shell shares with us, so it is set on terminals opened anew.
 */
#include <asm/termbits.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    PART_BYTES = 60000,      /* one message of a long hello */
    MESSAGE_BYTES_MAX = 65536 + 16,
    INPUT_BYTES = 16384,     /* one read of the terminal */
    TOKEN_BYTES_MAX = 64,
    BACKGROUND_POLL_MS = 200,
    RECONNECT_MS = 30000,
    RECONNECT_EVERY_MS = 100,
    UNANSWERED_SIGNAL_MS = 1000, /* an agent that does not answer must not keep Ctrl-C from working */
    EXIT_USAGE_ = 2,
    EXIT_TRY_LATER = 75,
    NOT_LOGGED_IN = 69
};

extern char **environ;

static int agent = -1;               /* SOCK_SEQPACKET to the session's agent */
static int signals = -1;             /* signalfd */
static sigset_t watched, inherited_mask;
static int terminal = -1;            /* descriptor for window size and settings, or -1 */
static int in_fd = -1;               /* terminal that is our standard input, or -1 */
static int out_fd[3] = {-1, -1, -1}; /* terminals that are fd 1 and 2 */
static char is_terminal[3], may_be_raw, resumable, accepted;
static char gate_open, input_ended, raw_wanted, raw_on, had_raw, was_foreground = 1;
static struct termios saved, raw_settings;
static struct winsize last_size;
static int typed_ahead;              /* bytes that were typed before the terminal became raw and are not read yet */
static int typed_signal;             /* signal of the last control key typed in raw mode, or 0 */
static int dying_signal;             /* signal that the agent has not answered yet, or 0 */
static int64_t dying_at_ms;
static char token[TOKEN_BYTES_MAX];
static size_t token_bytes;
static char message[MESSAGE_BYTES_MAX];
static char *pending;                /* rest of an O or P message that the terminal did not take yet */
static size_t pending_bytes;
static int pending_stream;
static char socket_path[PATH_MAX];
static char **given_argv;

/* ---- small things ---- */

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void say(const char *text)
{
    char line[512];
    int n = snprintf(line, sizeof line, "xos: %s%s\n", text, raw_on ? "\r" : "");
    if (n > 0 && write(2, line, (size_t)n) < 0)
        return; /* nobody to tell */
}

static int same_settings(const struct termios *a, const struct termios *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

/* In the foreground of the terminal, or the terminal does not do job control for us (not our controlling terminal). */
static int in_foreground(void)
{
    pid_t group;
    return terminal >= 0 && (ioctl(terminal, TIOCGPGRP, &group) < 0 ? errno == ENOTTY : group == getpgrp());
}

/* ---- bytes to and from the agent ---- */

static int send_with_fds(char tag, const void *data, size_t n, const int *fds, int fd_count)
{
    struct iovec parts[2] = {{&tag, 1}, {(void *)data, n}};
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct msghdr m = {.msg_iov = parts, .msg_iovlen = n ? 2 : 1};
    if (fd_count) {
        memset(&control, 0, sizeof control);
        m.msg_control = control.room;
        m.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)fd_count * sizeof(int));
    }
    ssize_t sent;
    do
        sent = sendmsg(agent, &m, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -1 : 0; /* a lost agent shows as end of file on the next recv */
}

static void tell(char tag, const void *data, size_t n)
{
    send_with_fds(tag, data, n, NULL, 0);
}

static int connect_agent(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof a.sun_path)
        return -1;
    strcpy(a.sun_path, path);
    int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (s >= 0 && connect(s, (struct sockaddr *)&a, sizeof a) < 0) {
        close(s);
        return -1;
    }
    return s;
}

/* Folder of the agent's sockets; 0 if it is not ours alone (then nobody there is trusted). */
static int find_agent_folder(char *folder, size_t n)
{
    const char *own = getenv("XOS_AGENT_DIR"), *runtime = getenv("XDG_RUNTIME_DIR");
    struct stat st;
    if (own && *own)
        snprintf(folder, n, "%s", own);
    else if (runtime && *runtime && stat(runtime, &st) == 0 && S_ISDIR(st.st_mode))
        snprintf(folder, n, "%s/xtreemos", runtime);
    else
        snprintf(folder, n, "/tmp/xtreemos-%u", (unsigned)getuid());
    return lstat(folder, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid() && !(st.st_mode & 077);
}

/* ---- hello: MessagePack by hand ---- */

static unsigned char *hello;
static size_t hello_bytes, hello_room;

static void put(const void *data, size_t n)
{
    if (hello_bytes + n > hello_room) {
        hello_room = (hello_bytes + n) * 2 + 4096;
        hello = realloc(hello, hello_room);
        if (!hello) {
            say("out of memory");
            _exit(1);
        }
    }
    memcpy(hello + hello_bytes, data, n);
    hello_bytes += n;
}

static void put_head(unsigned char kind, uint64_t value, int width)
{
    unsigned char b[9] = {kind};
    for (int i = 0; i < width; i++)
        b[1 + i] = (unsigned char)(value >> (8 * (width - 1 - i)));
    put(b, (size_t)width + 1);
}

static void put_uint(uint64_t v) { put_head(0xcf, v, 8); }
static void put_int(int64_t v) { put_head(0xd3, (uint64_t)v, 8); }
static void put_bool(int v) { put_head(v ? 0xc3 : 0xc2, 0, 0); }
static void put_array(size_t n) { put_head(0xdd, n, 4); }
static void put_map(size_t n) { put_head(0xdf, n, 4); }
static void put_bytes(const char *s) { put_head(0xc6, strlen(s), 4), put(s, strlen(s)); }
static void put_key(const char *s) { put_head((unsigned char)(0xa0 | strlen(s)), 0, 0), put(s, strlen(s)); }

static void put_strings(const char *key, char **list)
{
    size_t n = 0;
    while (list[n])
        n++;
    put_key(key);
    put_array(n);
    for (size_t i = 0; i < n; i++)
        put_bytes(list[i]);
}

static void put_limits(void)
{
    put_key("rlimits");
    put_array(RLIM_NLIMITS);
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
        getrlimit((__rlimit_resource_t)i, &r);
        put_array(2);
        put_uint(r.rlim_cur);
        put_uint(r.rlim_max);
    }
}

static void put_terminal(void)
{
    put_key("tty");
    if (terminal < 0) {
        put_head(0xc0, 0, 0);
        return;
    }
    put_map(3);
    put_key("rows"), put_uint(last_size.ws_row);
    put_key("cols"), put_uint(last_size.ws_col);
    put_key("termios_ok"), put_bool(may_be_raw);
}

static void make_hello(char **argv, const int *ignored, size_t ignored_count)
{
    char cwd[PATH_MAX];
    mode_t mask = umask(0);
    umask(mask);
    put_map(11);
    put_strings("argv", argv);
    put_strings("env", environ);
    put_key("cwd"), put_bytes(getcwd(cwd, sizeof cwd) ? cwd : "/");
    put_key("umask"), put_uint(mask);
    put_key("pid"), put_uint((uint64_t)getpid());
    put_key("pgrp"), put_uint((uint64_t)getpgrp());
    put_limits();
    put_key("nice"), put_int(getpriority(PRIO_PROCESS, 0));
    put_terminal();
    put_key("isatty"), put_array(3);
    for (int i = 0; i < 3; i++)
        put_bool(is_terminal[i]);
    put_key("ignored"), put_array(ignored_count);
    for (size_t i = 0; i < ignored_count; i++)
        put_uint((uint64_t)ignored[i]);
}

/* Standard descriptors that are no terminal, in order; then, if we may go raw, the terminal: only for the agent to put its
   settings back if we are killed by SIGKILL. The agent never reads or writes it, and closes it when we end. */
static int collect_fds(int *fds)
{
    int n = 0;
    for (int i = 0; i < 3; i++)
        if (!is_terminal[i])
            fds[n++] = i;
    if (may_be_raw)
        fds[n++] = terminal;
    return n;
}

static int send_hello(void)
{
    int fds[4], fd_count = collect_fds(fds);
    size_t at = 0;
    for (; hello_bytes - at > PART_BYTES; at += PART_BYTES)
        if (send_with_fds('h', hello + at, PART_BYTES, NULL, 0) < 0)
            return -1;
    return send_with_fds('H', hello + at, hello_bytes - at, fds, fd_count);
}

/* ---- terminal ---- */

static int reopen(int fd, int flags)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int own = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    return own >= 0 ? own : fd; /* after su the device is not ours: then plain blocking calls must do */
}

/* Is `pid` one of our ancestors? Up to 64 steps of /proc/PID/stat. */
static int is_ancestor(pid_t pid)
{
    pid_t at = getppid();
    for (int step = 0; step < 64 && at > 1; step++) {
        if (at == pid)
            return 1;
        char path[48], text[512];
        snprintf(path, sizeof path, "/proc/%d/stat", (int)at);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        if (fd >= 0)
            close(fd);
        if (n <= 0)
            return 0;
        text[n] = 0;
        char *end = strrchr(text, ')');
        if (!end || sscanf(end + 1, " %*c %d", &at) != 1)
            return 0;
    }
    return 0;
}

/* Raw mode garbles neighbours that print to the same terminal (`make -j`, `a & b`), so: nobody else may be in our process
   group, except processes that wait for us (a script's shell, sudo, make). */
static int is_alone(void)
{
    DIR *d = opendir("/proc");
    struct dirent *e;
    int alone = 1;
    if (!d)
        return 1;
    while (alone && (e = readdir(d))) {
        pid_t pid = atoi(e->d_name);
        if (pid > 0 && pid != getpid() && getpgid(pid) == getpgrp() && !is_ancestor(pid))
            alone = 0;
    }
    closedir(d);
    return alone;
}

static void look_at_descriptors(void)
{
    struct termios t;
    struct stat st;
    resumable = 1;
    for (int i = 0; i < 3; i++) {
        /* A closed descriptor stays closed in spirit: the wrong direction of /dev/null gives EBADF to whoever uses it. */
        if (fcntl(i, F_GETFD) < 0 && open("/dev/null", i ? O_RDONLY : O_WRONLY) != i)
            _exit(1); /* no /dev/null: nothing works on this machine */
        is_terminal[i] = ioctl(i, TCGETS, &t) == 0;
        if (is_terminal[i] && terminal < 0)
            terminal = i;
        if (!is_terminal[i] && (fstat(i, &st) < 0 || !S_ISCHR(st.st_mode)))
            resumable = 0; /* pipes and offsets die with an agent; only terminals and /dev/null can be taken up again */
    }
    if (terminal < 0)
        return;
    ioctl(terminal, TIOCGWINSZ, &last_size);
    may_be_raw = is_terminal[0] && is_terminal[1] && is_alone();
}

static void open_terminals(void)
{
    if (is_terminal[0])
        in_fd = reopen(0, O_RDONLY);
    for (int i = 1; i < 3; i++)
        if (is_terminal[i])
            out_fd[i] = reopen(i, O_WRONLY);
}

static void enter_raw(void)
{
    struct termios now;
    if (raw_on || !in_foreground() || ioctl(terminal, TCGETS, &now) < 0)
        return;
    if (!had_raw || !same_settings(&now, &raw_settings)) /* still ours after a stop: then `saved` is the true one */
        saved = now;
    had_raw = 1;
    raw_settings = saved;
    raw_settings.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON | IXOFF | IXANY);
    raw_settings.c_oflag &= ~(tcflag_t)OPOST;
    raw_settings.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
    raw_settings.c_cflag = (raw_settings.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
    raw_settings.c_cc[VMIN] = 1;
    raw_settings.c_cc[VTIME] = 0;
    /* The agent gets both before the change: if we are killed it puts `saved` back, if nobody else changed anything. */
    struct termios both[2] = {saved, raw_settings};
    tell('Q', both, sizeof both);
    ioctl(terminal, TCSETS, &raw_settings);
    raw_on = 1;
    if (ioctl(terminal, FIONREAD, &typed_ahead) < 0)
        typed_ahead = 0;
}

/* Ctrl-D that was typed while the terminal was cooked comes out of a raw one as a zero byte: make it Ctrl-D again. */
static void mend_typed_ahead(char *data, size_t n)
{
    for (size_t i = 0; i < n && typed_ahead > 0; i++, typed_ahead--)
        if (!data[i])
            data[i] = (char)saved.c_cc[VEOF];
}

static void leave_raw(void)
{
    struct termios now;
    if (!raw_on)
        return;
    raw_on = 0;
    if (in_foreground() && ioctl(terminal, TCGETS, &now) == 0 && same_settings(&now, &raw_settings))
        ioctl(terminal, TCSETS, &saved);
    if (agent >= 0)
        tell('Q', NULL, 0);
}

static int tell_size_if_changed(int always)
{
    struct winsize size;
    if (terminal < 0 || ioctl(terminal, TIOCGWINSZ, &size) < 0)
        return 0;
    if (!always && size.ws_row == last_size.ws_row && size.ws_col == last_size.ws_col)
        return 0;
    last_size = size;
    uint16_t body[2] = {size.ws_row, size.ws_col};
    tell('W', body, sizeof body); /* little-endian machines only, as all that we run on */
    return 1;
}

/* Remember the control key that will make the far terminal signal the job: in raw mode ours does not signal our group. */
static void note_typed(const char *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)data[i];
        typed_signal = !c ? 0
                       : c == saved.c_cc[VINTR] ? SIGINT
                       : c == saved.c_cc[VQUIT] ? SIGQUIT
                       : c == saved.c_cc[VSUSP] ? SIGTSTP
                                                : 0;
    }
}

static void read_terminal(void)
{
    char data[INPUT_BYTES];
    ssize_t n = read(in_fd, data, sizeof data);
    if (n > 0) {
        if (raw_on) {
            mend_typed_ahead(data, (size_t)n);
            note_typed(data, (size_t)n);
        }
        tell('I', data, (size_t)n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR && in_foreground())) {
        tell('E', NULL, 0);
        input_ended = 1; /* what is typed after Ctrl-D is the shell's */
    }
}

/* Try to write what is pending. SIGTTOU is let through meanwhile, so `stty tostop` stops us as it would stop the program. */
static void write_pending(void)
{
    sigset_t ttou;
    int fd = out_fd[pending_stream] >= 0 ? out_fd[pending_stream] : pending_stream;
    sigemptyset(&ttou);
    sigaddset(&ttou, SIGTTOU);
    sigprocmask(SIG_UNBLOCK, &ttou, NULL);
    ssize_t n = write(fd, pending, pending_bytes);
    int why = errno;
    sigprocmask(SIG_BLOCK, &ttou, NULL);
    if (n >= 0) {
        pending += n;
        pending_bytes -= (size_t)n;
    } else if (why != EAGAIN && why != EINTR) {
        pending_bytes = 0; /* the terminal is gone; the job hears of it by SIGHUP */
    }
}

/* The far terminal ends its lines with CR LF for a raw terminal. While ours is not raw (in the background) it adds a CR itself. */
static size_t without_double_returns(char *data, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (data[i] != '\r' || i + 1 == n || data[i + 1] != '\n')
            data[kept++] = data[i];
    return kept;
}

/* ---- ends ---- */

static void let_through(int sig)
{
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, sig);
    signal(sig, SIG_DFL);
    sigprocmask(SIG_UNBLOCK, &one, NULL);
}

static void die_by(int sig)
{
    struct rlimit none = {0, 0};
    int was_typed = raw_on && typed_signal == sig && (sig == SIGINT || sig == SIGQUIT) && in_foreground();
    leave_raw();
    setrlimit(RLIMIT_CORE, &none);
    /* A key signals the whole group: the shell of a script must learn of Ctrl-C as if the terminal had told it. */
    kill(was_typed ? 0 : getpid(), sig);
    let_through(sig);
    _exit(128 + sig); /* not reached, unless the default action is not death */
}

static void stop_by(int sig)
{
    sigset_t one, cont;
    int whole_group = raw_on && sig == SIGTSTP && typed_signal == SIGTSTP && in_foreground();
    struct timespec no_time = {0, 0};
    leave_raw();
    kill(whole_group ? 0 : getpid(), sig);
    if (sig != SIGSTOP) {
        let_through(sig); /* stops here; in an orphaned group the kernel ignores it, as for any program */
        sigemptyset(&one);
        sigaddset(&one, sig);
        sigprocmask(SIG_BLOCK, &one, NULL);
    }
    sigemptyset(&cont);
    sigaddset(&cont, SIGCONT);
    while (sigtimedwait(&cont, NULL, &no_time) > 0)
        ;
    typed_signal = 0;
    tell_size_if_changed(0);
    tell('C', "\1", 1); /* 1: this answers a T */
}

static int ends_by_default(int sig)
{
    return sig == SIGINT || sig == SIGTERM || sig == SIGHUP || sig == SIGQUIT;
}

static void read_signals(void)
{
    struct signalfd_siginfo info[8];
    ssize_t n = read(signals, info, sizeof info);
    for (size_t i = 0; n > 0 && i < (size_t)n / sizeof *info; i++) {
        unsigned char sig = (unsigned char)info[i].ssi_signo;
        if (sig == SIGWINCH) {
            if (!tell_size_if_changed(0) || !raw_wanted)
                tell('S', &sig, 1); /* a far terminal that changes its size signals the job itself */
        } else if (sig == SIGCONT) {
            raw_on = 0; /* whoever stopped us may have changed the settings: look again */
            tell_size_if_changed(0);
            tell('C', "\0", 1);
        } else if (sig != SIGCHLD) {
            tell('S', &sig, 1);
            if (!accepted && ends_by_default(sig) && !dying_signal) {
                dying_signal = sig;
                dying_at_ms = now_ms() + UNANSWERED_SIGNAL_MS;
            }
        }
    }
}

/* ---- fall back to the whole command, in Python ---- */

static void exec_python(char **argv)
{
    char self[PATH_MAX], python[PATH_MAX + 32];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    snprintf(python, sizeof python, "%s/python", self); /* installed in .venv/bin */
    if (access(python, X_OK) != 0)
        snprintf(python, sizeof python, "%s/../../.venv/bin/python", self); /* in build/bin */
    size_t count = 0;
    while (argv[count])
        count++;
    char **args = calloc(count + 5, sizeof *args);
    if (!args)
        _exit(1);
    args[0] = python, args[1] = "-I", args[2] = "-m", args[3] = "xtreemos.cli";
    memcpy(args + 4, argv + 1, count * sizeof *args);
    sigprocmask(SIG_SETMASK, &inherited_mask, NULL);
    execv(python, args);
    say("cannot start python of this checkout; run make to set it up");
    _exit(1);
}

/* ---- messages from the agent ---- */

static void on_accepted(const char *data, size_t n)
{
    struct stat st;
    if (n && n <= sizeof token) {
        memcpy(token, data, n);
        token_bytes = n;
    }
    if (accepted)
        return;
    accepted = 1;
    dying_signal = 0;
    free(hello);
    hello = NULL;
    for (int i = 0; i < 2; i++)
        if (!is_terminal[i] && fstat(i, &st) == 0 && !S_ISCHR(st.st_mode)) {
            int hole = open("/dev/null", i ? O_WRONLY : O_RDONLY); /* keeps the number taken */
            dup2(hole, i);
            close(hole);
        }
}

/* The agent of another VO must do it: say the same hello there. */
static void go_to(const char *vo, size_t n)
{
    char path[PATH_MAX];
    char *slash = strrchr(socket_path, '/');
    snprintf(path, sizeof path, "%.*s/ghost-%.*s.sock", (int)(slash - socket_path), socket_path, (int)n, vo);
    close(agent);
    strcpy(socket_path, path);
    agent = connect_agent(socket_path);
    if (agent < 0 || send_hello() < 0) {
        dprintf(2, "xos: you are not logged in to VO %.*s; log in first: xos login USER@%.*s\n", (int)n, vo, (int)n, vo);
        _exit(NOT_LOGGED_IN);
    }
}

static void print_line(const char *data, size_t n)
{
    if (write(2, data, n) < 0 || write(2, raw_on ? "\r\n" : "\n", raw_on ? 2 : 1) < 0)
        return; /* nobody to tell */
}

static void on_message(size_t n)
{
    char *data = message + 1;
    n -= 1;
    switch (message[0]) {
    case 'A': on_accepted(data, n); break;
    case 'O':
    case 'P':
        pending = data;
        pending_bytes = raw_wanted && !raw_on ? without_double_returns(data, n) : n;
        pending_stream = message[0] == 'O' ? 1 : 2;
        write_pending();
        break;
    case 'M':
        raw_wanted = n && data[0] && may_be_raw;
        if (!raw_wanted)
            leave_raw();
        break;
    case 'G': gate_open = n && data[0]; break;
    case 'L': print_line(data, n); break;
    case 'T':
        if (n)
            stop_by((unsigned char)data[0]);
        break;
    case 'V':
        if (!accepted)
            go_to(data, n);
        break;
    case 'F':
        if (!accepted)
            exec_python(given_argv);
        break;
    case 'K':
        if (n)
            die_by((unsigned char)data[0]);
        break;
    case 'X':
        leave_raw();
        _exit(n ? (unsigned char)data[0] : 1);
    }
}

/* The agent is gone without a word. With only terminals in hand its successor can take us up again. */
static void reconnect(void)
{
    int64_t give_up_at = now_ms() + RECONNECT_MS;
    close(agent);
    agent = -1;
    leave_raw();
    if (!accepted) {
        say("the session's agent ended before the program was started; try again");
        _exit(EXIT_TRY_LATER);
    }
    if (!resumable || !token_bytes) {
        say("the session's agent ended and took this program's pipes with it; look at `xos ps`");
        _exit(EXIT_TRY_LATER);
    }
    say("the session's agent is gone; waiting 30 s for it to come back (Ctrl-C gives up)");
    while (now_ms() < give_up_at) {
        struct pollfd p = {signals, POLLIN, 0};
        struct signalfd_siginfo info;
        if (poll(&p, 1, RECONNECT_EVERY_MS) > 0 && read(signals, &info, sizeof info) == (ssize_t)sizeof info) {
            if (ends_by_default((int)info.ssi_signo))
                die_by((int)info.ssi_signo);
            if (info.ssi_signo == SIGTSTP) { /* nobody can stop the job now; at least free the terminal */
                raise(SIGSTOP);
            }
        }
        agent = connect_agent(socket_path);
        if (agent < 0)
            continue;
        int fds[4], count = collect_fds(fds);
        char body[1 + TOKEN_BYTES_MAX];
        body[0] = (char)(is_terminal[0] | is_terminal[1] << 1 | is_terminal[2] << 2 | may_be_raw << 3);
        memcpy(body + 1, token, token_bytes);
        send_with_fds('R', body, token_bytes + 1, fds, count);
        gate_open = 0; /* the new agent opens it */
        tell_size_if_changed(1);
        return;
    }
    say("the session's agent did not come back within 30 s; the program may still run: see `xos ps`");
    _exit(EXIT_TRY_LATER);
}

static void read_agent(void)
{
    ssize_t n = recv(agent, message, sizeof message, 0);
    if (n > 0)
        on_message((size_t)n);
    else if (n == 0 || (errno != EINTR && errno != EAGAIN))
        reconnect();
}

/* ---- the loop ---- */

/* Follow changes between fore- and background that come without a signal (bash's `fg` of a running job). */
static int follow_foreground(void)
{
    int foreground = in_foreground();
    if (foreground && !was_foreground)
        tell_size_if_changed(0);
    was_foreground = foreground;
    if (raw_wanted && foreground && !raw_on)
        enter_raw();
    return foreground;
}

static void mirror(void)
{
    int back_off = 0; /* somebody typed at another process on our terminal: do not spin on it */
    for (;;) {
        int foreground = terminal >= 0 && follow_foreground();
        int wants_input = gate_open && in_fd >= 0 && !input_ended;
        int timeout = (raw_wanted && !foreground) || back_off ? BACKGROUND_POLL_MS : -1;
        if (dying_signal) {
            int64_t left = dying_at_ms - now_ms();
            if (left <= 0)
                die_by(dying_signal);
            timeout = (int)left;
        }
        struct pollfd p[4] = {
            {signals, POLLIN, 0},
            {pending_bytes ? -1 : agent, POLLIN, 0},
            {wants_input && !back_off ? in_fd : -1, POLLIN, 0},
            {pending_bytes ? (out_fd[pending_stream] >= 0 ? out_fd[pending_stream] : pending_stream) : -1, POLLOUT, 0},
        };
        back_off = 0;
        if (poll(p, 4, timeout) < 0)
            continue;
        if (p[0].revents)
            read_signals();
        if (p[3].revents)
            write_pending();
        if (p[2].revents) {
            if (in_foreground())
                read_terminal();
            else
                back_off = 1;
        }
        if (p[1].revents)
            read_agent();
    }
}

/* ---- start ---- */

static int is_fast(char **argv)
{
    static const char *const names[] = {"run", "sub", "ps", "kill", "wait", "logs", "attach", "nodes", "whoami", "top", "ssh-config"};
    int i = 1;
    while (argv[i] && argv[i][0] == '-') {
        int has_value = !strcmp(argv[i], "--grid") || !strcmp(argv[i], "--vo");
        if (!has_value && strncmp(argv[i], "--grid=", 7) && strncmp(argv[i], "--vo=", 5))
            return 0;
        i += 1 + (has_value && argv[i + 1]);
    }
    for (size_t k = 0; argv[i] && k < sizeof names / sizeof *names; k++)
        if (!strcmp(argv[i], names[k]))
            return 1;
    return 0;
}

/* `xsub x` is `xos sub x`; reached under any other name (a link called gcc) it is `xos run -- gcc ...`. */
static char **whole_command(int argc, char **argv)
{
    const char *base = argc ? strrchr(argv[0], '/') : NULL;
    base = base ? base + 1 : argc ? argv[0] : "xos";
    if (!strcmp(base, "xos"))
        return argv;
    char **out = calloc((size_t)argc + 4, sizeof *out);
    int n = 0;
    if (!out)
        _exit(1);
    out[n++] = "xos";
    if (!strcmp(base, "xsub") || !strcmp(base, "xps") || !strcmp(base, "xkill") || !strcmp(base, "xwait")) {
        out[n++] = (char *)base + 1;
    } else {
        out[n++] = "run";
        out[n++] = "--";
        out[n++] = (char *)base;
    }
    for (int i = 1; i < argc; i++)
        out[n++] = argv[i];
    return out;
}

static size_t take_signals(int *ignored)
{
    size_t n = 0;
    sigfillset(&watched);
    for (int sig = 1; sig < NSIG; sig++) {
        struct sigaction old;
        if (sigaction(sig, NULL, &old) == 0 && old.sa_handler == SIG_IGN) {
            sigdelset(&watched, sig);
            ignored[n++] = sig;
        }
    }
    sigaddset(&watched, SIGTTOU); /* always blocked: see the top */
    sigaddset(&watched, SIGTTIN);
    sigprocmask(SIG_BLOCK, &watched, &inherited_mask);
    signals = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    return n;
}

int main(int argc, char **argv)
{
    char folder[PATH_MAX - 32];
    int ignored[NSIG];
    sigprocmask(SIG_BLOCK, NULL, &inherited_mask);
    given_argv = whole_command(argc, argv);
    if (!is_fast(given_argv) || !find_agent_folder(folder, sizeof folder))
        exec_python(given_argv);
    look_at_descriptors();
    snprintf(socket_path, sizeof socket_path, "%s/ghost.sock", folder);
    agent = connect_agent(socket_path);
    if (agent < 0)
        exec_python(given_argv);
    size_t ignored_count = take_signals(ignored);
    make_hello(given_argv, ignored, ignored_count);
    if (signals < 0 || send_hello() < 0)
        exec_python(given_argv);
    open_terminals();
    mirror();
}
