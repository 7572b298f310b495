/* Preloaded into CRIU where the machine withholds CAP_SYS_RESOURCE (some virtual machines and containers do, even from root).
 *
 * CRIU asks for the limits of the processes it dumps with prlimit64, which the kernel refuses about another user's process without
 * that capability; the same numbers stand in /proc/PID/limits, which root may read. Only reading is answered, everything else goes
 * to the kernel unchanged. CRIU calls through libc's `syscall`, so that is what is replaced.
 *
 * Build: gcc -O2 -shared -fPIC -o criu_limits.so criu_limits.c; use: LD_PRELOAD=.../criu_limits.so crun checkpoint ...   (x86-64)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static const char *const NAMES[] = {
    "Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size", "Max resident set",
    "Max processes", "Max open files", "Max locked memory", "Max address space", "Max file locks", "Max pending signals",
    "Max msgqueue size", "Max nice priority", "Max realtime priority", "Max realtime timeout",
};

long xos_raw_syscall(long number, long a, long b, long c, long d, long e, long f);
__asm__("xos_raw_syscall: mov %rdi,%rax\n mov %rsi,%rdi\n mov %rdx,%rsi\n mov %rcx,%rdx\n mov %r8,%r10\n mov %r9,%r8\n"
        " mov 8(%rsp),%r9\n syscall\n ret\n");

static rlim64_t value(const char *word)
{
    return strcmp(word, "unlimited") ? strtoull(word, NULL, 10) : RLIM64_INFINITY;
}

static int read_limit(long pid, long resource, struct rlimit64 *into)
{
    char path[64], line[256], soft[32], hard[32];
    int found = 0;
    snprintf(path, sizeof path, "/proc/%ld/limits", pid);
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    size_t length = strlen(NAMES[resource]);
    while (!found && fgets(line, sizeof line, file))
        if (!strncmp(line, NAMES[resource], length) && sscanf(line + length, " %31s %31s", soft, hard) == 2) {
            into->rlim_cur = value(soft);
            into->rlim_max = value(hard);
            found = 1;
        }
    fclose(file);
    return found;
}

long syscall(long number, ...)
{
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    long result = xos_raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (result >= 0 || result <= -4096) return result;
    int why = (int)-result;
    if (number == SYS_prlimit64 && why == EPERM && !a[2] && a[3] && a[1] >= 0 && a[1] < (long)(sizeof NAMES / sizeof *NAMES)
        && read_limit(a[0], a[1], (struct rlimit64 *)a[3])) return 0;
    errno = why;
    return -1;
}
