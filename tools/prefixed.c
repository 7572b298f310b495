/* Starts a program of a private prefix with the prefix's own loader and libraries, wherever the prefix is mounted.
 *
 * Installed as PREFIX/bin/NAME; runs PREFIX/libexec/NAME with PREFIX/lib. The loader is executed out of a sealed memfd: crun copies
 * whatever /proc/self/exe is into such a memfd and executes itself again, unless it already is one (its guard against a container
 * that overwrites its runtime), and the second execution would lose the loader's arguments.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static void fail(const char *what, const char *path)
{
	fprintf(stderr, "%s %s: %s; run `make setup` again\n", what, path, strerror(errno));
	_exit(127);
}

/* Return dir/name in fresh memory. */
static char *join(const char *dir, const char *name)
{
	char *path = NULL;
	if (asprintf(&path, "%s/%s", dir, name) < 0)
		fail("cannot join", name);
	return path;
}

static int sealed_copy(const char *path)
{
	struct stat st;
	int from = open(path, O_RDONLY | O_CLOEXEC);
	/* Close-on-exec: the kernel has mapped it by then, and no descriptor may reach the program. */
	int to = memfd_create("loader", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (from < 0 || to < 0 || fstat(from, &st) < 0)
		fail("cannot read", path);
	for (off_t left = st.st_size; left > 0;) {
		ssize_t n = sendfile(to, from, NULL, (size_t)left);
		if (n <= 0)
			fail("cannot copy", path);
		left -= n;
	}
	if (fcntl(to, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
		fail("cannot seal", path);
	return to;
}

/* Put the prefix's own bin first on PATH: crun (through libcriu) looks for `criu` there. */
static void extend_path(const char *bin)
{
	const char *old = getenv("PATH");
	char *path = NULL;
	if (asprintf(&path, "%s:%s", bin, old && *old ? old : "/usr/sbin:/usr/bin:/sbin:/bin") < 0 || setenv("PATH", path, 1) < 0)
		fail("cannot extend", "PATH");
}

int main(int argc, char **argv)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	if (n < 0)
		fail("cannot read", "/proc/self/exe");
	self[n] = 0;
	char *slash = strrchr(self, '/');
	const char *name = slash + 1;
	*slash = 0;
	char *prefix = join(self, ".."), *libs = join(prefix, "lib");
	char *program = join(join(prefix, "libexec"), name);
	char **args = calloc((size_t)argc + 6, sizeof *args);
	if (!args)
		fail("no memory for", name);
	char *head[] = {"ld.so", "--library-path", libs, "--argv0", argc > 0 ? argv[0] : (char *)name, program};
	memcpy(args, head, sizeof head);
	for (int i = 1; i < argc; i++)
		args[5 + i] = argv[i];
	extend_path(self);
	fexecve(sealed_copy(join(libs, "ld.so")), args, environ);
	fail("cannot execute", program);
}
