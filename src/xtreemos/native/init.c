/* PID 1 of a job's container: the parent that a shell would be to a local program.
 *
 *   init [--tty] [--umask OCTAL] [--nice N] [--rlimit RESOURCE=SOFT:HARD]... [--ignore SIG]... [--fifo PATH]
 *        [--cwd DIR] [--home DIR] [--stdio-from FD | --stderr-from FD] [--winsize ROWSxCOLS] -- PROG [ARG]...
 *
 * The job must not be PID 1 itself (the kernel drops default-action signals there) and must not be in an orphaned process
 * group (the kernel drops its stops); so init stays the session leader and the job is its child in a group of its own.
 * Init forwards no signal: jobd signals the tree from outside. It tells jobd of the job's life in short lines written to a
 * FIFO, which is opened for each line, so that no descriptor reaches out of the container while CRIU dumps it:
 *
 *   started | noexec ERRNO | stopped SIGNAL | continued | exit CODE USER_US SYSTEM_US RSS_KIB | signal SIGNAL CORE USER_US SYSTEM_US RSS_KIB
 *
 * With pipes init drops its own copies of 0, 1 and 2: else neither end of file nor SIGPIPE would pass. When the job's main
 * process ended, what is left of its tree is treated like a closed session: HUP, a short grace, KILL.
 *
 *   init ... --serve FD -- PROG [ARG]...
 *
 * runs the tasks of one array in one container, each when an order on FD (a SOCK_SEQPACKET socket to jobd) says so:
 *
 *   run NUMBER NUL NAME=VALUE NUL ...   with two descriptors, which become the task's 1 and 2; NAME=VALUE join init's environment
 *   signal NUMBER SIGNAL                to all processes of the task
 *
 * Each task has a keeper, our child and the subreaper of the task: so its processes are those below the keeper whatever they do,
 * and the keeper is to the task what init is to a job. Answers are the lines above behind "NUMBER ", and last "NUMBER gone". The
 * socket is closed to tasks, as keepers and init are not dumpable. When it ends, so do init and with it all tasks.
 *
 *   init --launch [--subreaper] [--group DIR]... -- PROG [ARG]...
 *
 * is a second, outer use: join cgroup v1 groups, take a fresh session keyring, close every descriptor above 2 (--keep N: above
 * N), then exec. It runs before crun, where all of that costs microseconds.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEYCTL_JOIN_SESSION_KEYRING 1
#define MAX_RLIMITS 16
#define GRACE_MS 200
#define FIFO_WAIT_MS 5000
#define MAX_TASKS 4096
#define MAX_DEPTH 64
#define MAX_ORDER 65536
#define MAX_CHILDREN_TEXT 16384
#define MAX_TREE 4096
#define KILL_AGAIN_NS 20000000L

struct limit { int resource; rlim_t soft, hard; };

struct options {
    int tty, nice, mask, stdio_from, stderr_from, serve;
    long task;
    const char *fifo, *cwd, *home;
    struct limit limits[MAX_RLIMITS];
    int limit_count;
    sigset_t ignored;
    struct winsize size;
    char **argv;
};

static void die(const char *what)
{
    dprintf(2, "xos-init: %s: %s\n", what, strerror(errno));
    _exit(125);
}

static void usage(const char *what)
{
    dprintf(2, "xos-init: bad argument %s\n", what);
    _exit(125);
}

static long number(const char *text, int base)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, base);
    if (errno || end == text || *end) usage(text);
    return value;
}

static rlim_t limit_value(const char *text, char **end)
{
    if (!strncmp(text, "-1", 2)) { *end = (char *)text + 2; return RLIM_INFINITY; }
    return strtoull(text, end, 10);
}

static void add_limit(struct options *o, const char *text)
{
    char *end;
    struct limit *l = &o->limits[o->limit_count];
    if (o->limit_count == MAX_RLIMITS) usage(text);
    l->resource = (int)strtol(text, &end, 10);
    if (*end != '=') usage(text);
    l->soft = limit_value(end + 1, &end);
    if (*end != ':') usage(text);
    l->hard = limit_value(end + 1, &end);
    if (*end) usage(text);
    o->limit_count++;
}

static void set_size(struct options *o, const char *text)
{
    if (sscanf(text, "%hux%hu", &o->size.ws_row, &o->size.ws_col) != 2) usage(text);
}

static void parse(struct options *o, int argc, char **argv)
{
    memset(o, 0, sizeof *o);
    sigemptyset(&o->ignored);
    o->mask = -1;
    o->stdio_from = o->stderr_from = o->serve = -1;
    int i = 1;
    for (; i < argc && strcmp(argv[i], "--"); i++) {
        const char *name = argv[i];
        if (!strcmp(name, "--tty")) { o->tty = 1; continue; }
        if (i + 1 >= argc) usage(name);
        const char *value = argv[++i];
        if (!strcmp(name, "--umask")) o->mask = (int)number(value, 8) & 0777;
        else if (!strcmp(name, "--nice")) o->nice = (int)number(value, 10);
        else if (!strcmp(name, "--rlimit")) add_limit(o, value);
        else if (!strcmp(name, "--ignore")) sigaddset(&o->ignored, (int)number(value, 10));
        else if (!strcmp(name, "--fifo")) o->fifo = value;
        else if (!strcmp(name, "--cwd")) o->cwd = value;
        else if (!strcmp(name, "--home")) o->home = value;
        else if (!strcmp(name, "--stdio-from")) o->stdio_from = (int)number(value, 10);
        else if (!strcmp(name, "--stderr-from")) o->stderr_from = (int)number(value, 10);
        else if (!strcmp(name, "--serve")) o->serve = (int)number(value, 10);
        else if (!strcmp(name, "--winsize")) set_size(o, value);
        else usage(name);
    }
    if (i + 1 >= argc) usage("(no program)");
    o->argv = argv + i + 1;
}

/* A line is shorter than PIPE_BUF, so it arrives whole. No reader means that jobd is gone and nobody wants to know. */
static void tell(const struct options *o, const char *format, ...)
{
    char line[160];
    va_list args;
    if (!o->fifo) return;
    int head = o->serve >= 0 ? snprintf(line, sizeof line, "%ld ", o->task) : 0;
    va_start(args, format);
    int size = head + vsnprintf(line + head, sizeof line - (size_t)head, format, args);
    va_end(args);
    if (o->serve >= 0) {
        while (send(o->serve, line, (size_t)size, MSG_NOSIGNAL) < 0 && errno == EINTR) continue;
        return;
    }
    int fd = open(o->fifo, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return;
    for (int tries = 0; tries < 2; tries++) {
        if (write(fd, line, (size_t)size) == size || errno != EAGAIN) break;
        struct pollfd p = {fd, POLLOUT, 0};
        poll(&p, 1, FIFO_WAIT_MS);
    }
    close(fd);
}

static void apply_limits(const struct options *o)
{
    for (int i = 0; i < o->limit_count; i++) {
        struct rlimit now, want = {o->limits[i].soft, o->limits[i].hard};
        if (getrlimit(o->limits[i].resource, &now)) continue;
        if (want.rlim_max > now.rlim_max) want.rlim_max = now.rlim_max; /* a job may only lower, as without privilege */
        if (want.rlim_cur > want.rlim_max) want.rlim_cur = want.rlim_max;
        if (setrlimit(o->limits[i].resource, &want)) dprintf(2, "xos: a resource limit was not set: %s\n", strerror(errno));
    }
}

static void enter_folder(const struct options *o)
{
    if (!o->cwd || !chdir(o->cwd)) return;
    int why = errno;
    const char *to = o->home && !chdir(o->home) ? o->home : (chdir("/") ? "nowhere" : "/");
    dprintf(2, "xos: warning: cannot enter %s here (%s); working in %s\n", o->cwd, strerror(why), to);
}

static void reset_signals(const struct options *o)
{
    for (int sig = 1; sig < NSIG; sig++) {
        /* the bare call, as glibc keeps 32 and 33 to itself and would leave them as some ancestor had them */
        struct { void *handler; unsigned long flags; void *restorer; uint64_t mask; } action = {SIG_DFL, 0, NULL, 0};
        if (sigismember(&o->ignored, sig) == 1) action.handler = SIG_IGN;
        syscall(SYS_rt_sigaction, sig, &action, NULL, sizeof action.mask);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void own_terminal(void)
{
    sigset_t out, before;
    sigemptyset(&out);
    sigaddset(&out, SIGTTOU);
    sigprocmask(SIG_BLOCK, &out, &before);
    if (tcsetpgrp(0, getpid())) die("tcsetpgrp");
    sigprocmask(SIG_SETMASK, &before, NULL);
}

static void say_noexec(const char *program, int why)
{
    if (why == ENOENT && !strchr(program, '/')) dprintf(2, "xos: %s: command not found\n", program);
    else dprintf(2, "xos: %s: %s\n", program, strerror(why));
}

static void run_job(const struct options *o, int report)
{
    setpgid(0, 0);
    if (o->tty) own_terminal();
    if (o->stdio_from >= 0) {
        for (int fd = 0; fd < 3; fd++)
            if (dup2(o->stdio_from + fd, fd) < 0) die("stdio");
        close_range((unsigned)o->stdio_from, (unsigned)o->stdio_from + 2, 0);
    }
    if (o->stderr_from >= 0) {
        if (dup2(o->stderr_from, 2) < 0) die("stderr");
        close(o->stderr_from);
    }
    prctl(PR_SET_DUMPABLE, 1);
    syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
    if (o->mask >= 0) umask((mode_t)o->mask);
    if (o->nice && setpriority(PRIO_PROCESS, 0, o->nice)) dprintf(2, "xos: niceness was not set: %s\n", strerror(errno));
    enter_folder(o);
    reset_signals(o);
    apply_limits(o);
    execvp(o->argv[0], o->argv);
    int why = errno;
    say_noexec(o->argv[0], why);
    if (write(report, &why, sizeof why) != sizeof why) _exit(126);
    _exit(why == ENOENT ? 127 : 126);
}

/* Replace our copies of the job's streams; a terminal stays open, so that its master end lives as long as we do. */
static void let_go_of_streams(const struct options *o)
{
    if (o->stdio_from >= 0) close_range((unsigned)o->stdio_from, (unsigned)o->stdio_from + 2, 0);
    if (o->stderr_from >= 0) close(o->stderr_from);
    if (o->tty) return;
    int null = open("/dev/null", O_RDWR);
    if (null < 0) die("/dev/null");
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    if (null > 2) close(null);
}

static long micros(struct timeval t) { return t.tv_sec * 1000000L + t.tv_usec; }

static void tell_end(const struct options *o, int status, const struct rusage *u)
{
    long user = micros(u->ru_utime), sys = micros(u->ru_stime);
    if (WIFEXITED(status)) tell(o, "exit %d %ld %ld %ld\n", WEXITSTATUS(status), user, sys, u->ru_maxrss);
    else tell(o, "signal %d %d %ld %ld %ld\n", WTERMSIG(status), !!WCOREDUMP(status), user, sys, u->ru_maxrss);
}

/* Wait until the main process ended; reap everything else that comes by. */
static int watch_job(const struct options *o, pid_t job)
{
    for (;;) {
        int status;
        struct rusage usage;
        pid_t pid = wait4(-1, &status, WUNTRACED | WCONTINUED, &usage);
        if (pid < 0 && errno == EINTR) continue;
        if (pid < 0) die("wait4");
        if (pid != job) continue;
        if (WIFSTOPPED(status)) tell(o, "stopped %d\n", WSTOPSIG(status));
        else if (WIFCONTINUED(status)) tell(o, "continued\n");
        else { tell_end(o, status, &usage); return status; }
    }
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Close the session: HUP, a grace, KILL. kill(-1) is atomic in this PID namespace and spares ourselves. */
static void end_the_rest(const sigset_t *child)
{
    while (waitpid(-1, NULL, WNOHANG) > 0) continue;
    if (kill(-1, SIGHUP) && errno == ESRCH) return;
    kill(-1, SIGCONT);
    int64_t end = now_ms() + GRACE_MS;
    for (int64_t left = GRACE_MS; left > 0; left = end - now_ms()) {
        struct timespec wait = {left / 1000, (left % 1000) * 1000000L};
        sigtimedwait(child, NULL, &wait);
        while (waitpid(-1, NULL, WNOHANG) > 0) continue;
        if (kill(-1, 0) && errno == ESRCH) return;
    }
    kill(-1, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR) continue;
}

/* Fork and execute the job; return when it runs or could not. */
static pid_t begin_job(const struct options *o)
{
    int report[2];
    if (pipe2(report, O_CLOEXEC)) die("pipe");
    pid_t job = fork();
    if (job < 0) die("fork");
    if (!job) run_job(o, report[1]);
    setpgid(job, job); /* both sides do it, so neither can be first with an unfinished group */
    close(report[1]);
    int why;
    ssize_t got;
    while ((got = read(report[0], &why, sizeof why)) < 0 && errno == EINTR) continue;
    if (got == sizeof why) tell(o, "noexec %d\n", why);
    else tell(o, "started\n"); /* from here on a signal from outside finds the job, and its stops are seen */
    close(report[0]);
    return job;
}

static void block_child_signal(sigset_t *child)
{
    sigemptyset(child);
    sigaddset(child, SIGCHLD);
    sigprocmask(SIG_BLOCK, child, NULL);
}

static int keep_job(struct options *o)
{
    sigset_t child;
    prctl(PR_SET_DUMPABLE, 0); /* the job has our uid: it must not trace us */
    block_child_signal(&child);
    if (o->tty && o->size.ws_row && ioctl(0, TIOCSWINSZ, &o->size)) die("TIOCSWINSZ");
    pid_t job = begin_job(o);
    let_go_of_streams(o);
    int status = watch_job(o, job);
    end_the_rest(&child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ---- the tasks of an array ---- */

struct keeper { pid_t pid; long task; };
static struct keeper keepers[MAX_TASKS];
static int keeper_count;

struct tree { int count; pid_t pids[MAX_TREE]; };

static void find_below(struct tree *tree, pid_t pid, int depth);

/* Find the children of one thread and what is below them: the kernel lists children by the thread that forked them. */
static void find_children(struct tree *tree, const char *list, int depth)
{
    char text[MAX_CHILDREN_TEXT], *at = text, *end;
    int fd = open(list, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    size_t size = 0;
    for (ssize_t got; size < sizeof text - 1 && (got = read(fd, text + size, sizeof text - 1 - size)) > 0;) size += (size_t)got;
    close(fd);
    text[size] = 0;
    for (long child; (child = strtol(at, &end, 10)) > 0 && end != at && tree->count < MAX_TREE; at = end) {
        tree->pids[tree->count++] = (pid_t)child;
        find_below(tree, (pid_t)child, depth + 1);
    }
}

/* Find every process below `pid`, parents before their children. */
static void find_below(struct tree *tree, pid_t pid, int depth)
{
    char path[512];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *threads = depth > MAX_DEPTH ? NULL : opendir(path);
    if (!threads) return;
    for (struct dirent *entry; (entry = readdir(threads));) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/children", pid, entry->d_name);
        find_children(tree, path, depth);
    }
    closedir(threads);
}

/* Send a signal to every process below `pid`, not to itself; first all are found, for who dies loses its place. Parents come first:
   one that saw its child die might end by itself before its own signal. Who forks meanwhile is not found. */
static void signal_below(pid_t pid, int sig)
{
    static struct tree tree;
    tree.count = 0;
    find_below(&tree, pid, 0);
    for (int i = 0; i < tree.count; i++) kill(tree.pids[i], sig);
}

/* Reap what has ended; 0 when there are no children any more. */
static int reap_ended(void)
{
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) continue;
    return !(pid < 0 && errno == ECHILD);
}

/* What is left of a task: HUP, a grace, KILL. All of it becomes ours as it is orphaned, so this comes to an end. */
static void end_task(const sigset_t *child)
{
    if (!reap_ended()) return;
    signal_below(getpid(), SIGHUP);
    signal_below(getpid(), SIGCONT);
    int64_t end = now_ms() + GRACE_MS;
    for (int64_t left = GRACE_MS; left > 0; left = end - now_ms()) {
        struct timespec wait = {left / 1000, (left % 1000) * 1000000L};
        sigtimedwait(child, NULL, &wait);
        if (!reap_ended()) return;
    }
    const struct timespec pause = {0, KILL_AGAIN_NS};
    do {
        signal_below(getpid(), SIGKILL);
        sigtimedwait(child, NULL, &pause);
    } while (reap_ended());
}

static void keep_task(struct options *o, char *words, size_t size, int *streams)
{
    sigset_t child;
    block_child_signal(&child);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (char *word = words; word < words + size; word += strlen(word) + 1)
        if (*word) putenv(word);
    for (int i = 0; i < 2; i++)
        if (dup2(streams[i], i + 1) < 0) die("streams");
    pid_t job = begin_job(o);
    dup2(0, 1);
    dup2(0, 2);
    close(streams[0]);
    close(streams[1]);
    watch_job(o, job);
    end_task(&child);
    _exit(0);
}

static void start_task(struct options *o, char *words, size_t size, int *streams)
{
    pid_t pid = keeper_count < MAX_TASKS ? fork() : -1;
    if (!pid) keep_task(o, words, size, streams);
    if (pid > 0) {
        keepers[keeper_count++] = (struct keeper){pid, o->task};
        return;
    }
    tell(o, "noexec %d\n", EAGAIN);
    tell(o, "gone\n");
}

static void signal_task(long task, int sig)
{
    for (int i = 0; i < keeper_count; i++)
        if (keepers[i].task == task) {
            signal_below(keepers[i].pid, sig);
            if (sig == SIGKILL) kill(keepers[i].pid, SIGCONT); /* a task may have stopped its keeper */
        }
}

/* One order; 0 when there will be no more. */
static int take_order(struct options *o)
{
    static char text[MAX_ORDER];
    union { struct cmsghdr head; char room[CMSG_SPACE(2 * sizeof(int))]; } control;
    struct iovec io = {text, sizeof text - 1};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(o->serve, &m, MSG_CMSG_CLOEXEC);
    if (size < 0 && errno == EINTR) return 1;
    if (size <= 0) return 0;
    text[size] = 0;
    int streams[2] = {-1, -1}, sig;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof streams)) memcpy(streams, CMSG_DATA(c), sizeof streams);
    if (sscanf(text, "run %ld", &o->task) == 1 && streams[1] >= 0) {
        size_t head = strlen(text) + 1;
        start_task(o, text + head, (size_t)size > head ? (size_t)size - head : 0, streams);
    } else if (sscanf(text, "signal %ld %d", &o->task, &sig) == 2) signal_task(o->task, sig);
    for (int i = 0; i < 2; i++)
        if (streams[i] >= 0) close(streams[i]);
    return 1;
}

/* Bury keepers. One that was killed (a task may do that: it has our uid) could not tell of its task's end. */
static void reap_keepers(struct options *o)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int i = 0; i < keeper_count; i++) {
            if (keepers[i].pid != pid) continue;
            o->task = keepers[i].task;
            keepers[i] = keepers[--keeper_count];
            if (WIFSIGNALED(status)) tell(o, "signal %d 0 0 0 0\n", WTERMSIG(status));
            tell(o, "gone\n");
            break;
        }
}

static int serve_tasks(struct options *o)
{
    sigset_t child;
    prctl(PR_SET_DUMPABLE, 0);
    fcntl(o->serve, F_SETFD, FD_CLOEXEC);
    block_child_signal(&child);
    int ended = signalfd(-1, &child, SFD_CLOEXEC);
    if (ended < 0) die("signalfd");
    let_go_of_streams(o);
    int serve = o->serve;
    o->serve = -1;
    tell(o, "started\n"); /* of init itself, through the FIFO */
    o->serve = serve;
    for (;;) {
        struct pollfd p[2] = {{serve, POLLIN, 0}, {ended, POLLIN, 0}};
        if (poll(p, 2, -1) < 0 && errno != EINTR) die("poll");
        struct signalfd_siginfo info;
        if (p[1].revents && read(ended, &info, sizeof info) > 0) reap_keepers(o);
        if (p[0].revents && !take_order(o)) return 0;
    }
}

static void join_group(const char *folder)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/tasks", folder);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) die(path);
    if (write(fd, "0", 1) != 1) die(path); /* "tasks" and 0: the kernel then skips its global lock (milliseconds) */
    close(fd);
}

static int launch(int argc, char **argv)
{
    unsigned keep = 2;
    int i = 2;
    for (; i < argc && strcmp(argv[i], "--"); i++) {
        if (!strcmp(argv[i], "--subreaper")) {
            if (prctl(PR_SET_CHILD_SUBREAPER, 1)) die("subreaper");
            continue;
        }
        if (i + 1 >= argc) usage(argv[i]);
        if (!strcmp(argv[i], "--group")) join_group(argv[++i]);
        else if (!strcmp(argv[i], "--keep")) keep = (unsigned)number(argv[++i], 10);
        else usage(argv[i]);
    }
    if (i + 1 >= argc) usage("(no program)");
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 && errno != ENOSYS) die("keyring");
    if (close_range(keep + 1, ~0U, 0)) die("close_range");
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL); /* Python ignores it, and so would crun and the job */
    execv(argv[i + 1], argv + i + 1);
    die(argv[i + 1]);
    return 125;
}

int main(int argc, char **argv)
{
    struct options options;
    if (argc > 1 && !strcmp(argv[1], "--launch")) return launch(argc, argv);
    parse(&options, argc, argv);
    if (options.serve >= 0) return serve_tasks(&options);
    return keep_job(&options);
}
