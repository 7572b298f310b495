/* sshfront: what a node's stock sshd runs in place of the account's shell, and the helpers that sshd asks about a log-in.
 *
 *   sshfront principals USER TYPE CERTIFICATE   AuthorizedPrincipalsCommand: prints the principal if the node admits the certificate
 *   sshfront keys USER TYPE KEY                 AuthorizedKeysCommand: prints nothing, ever; a certificate that sshd did not trust
 *                                               is shown to the node so that the refusal stands in the audit
 *   sshfront gate NETNS|new NAME PROGRAM ARG... enters (or makes) a network, takes the host name that jobs see (X11 cookies are
 *                                               filed under it) and becomes PROGRAM; started by xosd as root
 *   anything else (`-c COMMAND`, log-in shell)  starts the command as a job in the user's sandbox and stays as its front
 *
 * A shell would run here *outside* any sandbox (bash even reads ~/.bashrc when sshd starts it), so the shell of a grid user is
 * this program. It reads no file of the user but the certificate that sshd notes (ExposeAuthInfo), and decides nothing: the node
 * (RUN/ssh.sock, frames of docs/notes/0001) knows by the kernel whose process we are.
 *
 * Without a terminal the job gets our three descriptors themselves; we only wait. With one, it has a terminal of its own and we
 * copy bytes between that and sshd's, which is raw. If xosd is started again we connect again and go on at the same offsets.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
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
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_DIR "/var/lib/xtreemos"
#define DEFAULT_SOCKET "/run/xtreemos/ssh.sock"
#define EXIT_LOST 255             /* what ssh itself says when a session broke */
#define FRAME_MAX (4 * 1024 * 1024 + 64)
#define AGAIN_S 60                /* how long a restarting xosd is waited for: as long as it lets jobs live without us */
#define AGAIN_MS 100
#define INPUT_MAX (256 * 1024)    /* typed bytes that the job has not accepted yet */
#define CERT_MAX 16384

enum { CALL = 1, RESULT, ERROR, EVENT, DATA, ACK, END, CLOSE };

static char socket_path[108];
static int sock = -1;
static uint8_t *in_buffer;
static size_t in_count, in_room;
static struct termios saved;
static int is_raw;

static void restore(void) {
	if (is_raw)
		tcsetattr(0, TCSADRAIN, &saved);
	is_raw = 0;
}

static void __attribute__((noreturn, format(printf, 2, 3))) die(int code, const char *format, ...) {
	va_list arguments;
	restore();
	va_start(arguments, format);
	fputs("xos: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	exit(code);
}

/* -- MessagePack: a writer into one growing buffer, a reader that finds keys of maps ------------------------------------------ */

struct buffer {
	uint8_t *data;
	size_t count, room;
};

static void put(struct buffer *b, const void *data, size_t count) {
	if (b->count + count > b->room) {
		b->room = (b->count + count) * 2 + 256;
		b->data = realloc(b->data, b->room);
		if (!b->data)
			die(1, "out of memory");
	}
	memcpy(b->data + b->count, data, count);
	b->count += count;
}

static void put_head(struct buffer *b, uint8_t tag, uint32_t value) {
	uint8_t bytes[5] = {tag, value >> 24, value >> 16, value >> 8, value};
	put(b, bytes, 5);
}

static void put_map(struct buffer *b, uint32_t pairs) { put_head(b, 0xdf, pairs); }
static void put_int(struct buffer *b, uint32_t value) { put_head(b, 0xce, value); }

static void put_text(struct buffer *b, const char *text, size_t count) {
	put_head(b, 0xdb, count);
	put(b, text, count);
}

static void put_string(struct buffer *b, const char *text) { put_text(b, text, strlen(text)); }

static uint64_t big_endian(const uint8_t *p, int bytes) {
	uint64_t value = 0;
	while (bytes--)
		value = value << 8 | *p++;
	return value;
}

struct value {
	char kind; /* i integer, s string or bytes, m map, a array, n nil, b boolean, f float */
	int64_t number; /* of an integer or boolean; count of the others */
	const uint8_t *data; /* behind the head */
};

/* Read one head; returns 0 at the end or for what no MessagePack has. */
static int read_value(const uint8_t *p, const uint8_t *end, struct value *v) {
	if (p >= end)
		return 0;
	uint8_t tag = *p++;
	int size = 0;
	*v = (struct value){.data = p};
	if (tag < 0x80 || tag >= 0xe0)
		*v = (struct value){'i', (int8_t)tag, p};
	else if (tag < 0x90)
		*v = (struct value){'m', tag & 15, p};
	else if (tag < 0xa0)
		*v = (struct value){'a', tag & 15, p};
	else if (tag < 0xc0)
		*v = (struct value){'s', tag & 31, p};
	else if (tag == 0xc0)
		v->kind = 'n';
	else if (tag == 0xc2 || tag == 0xc3)
		*v = (struct value){'b', tag & 1, p};
	else if (tag >= 0xc4 && tag <= 0xc6)
		v->kind = 's', size = 1 << (tag - 0xc4);
	else if (tag == 0xca || tag == 0xcb)
		*v = (struct value){'f', tag == 0xca ? 4 : 8, p};
	else if (tag >= 0xcc && tag <= 0xcf)
		v->kind = 'i', size = 1 << (tag - 0xcc);
	else if (tag >= 0xd0 && tag <= 0xd3)
		v->kind = 'i', size = 1 << (tag - 0xd0);
	else if (tag >= 0xd9 && tag <= 0xdb)
		v->kind = 's', size = 1 << (tag - 0xd9);
	else if (tag == 0xdc || tag == 0xdd)
		v->kind = 'a', size = 2 << (tag - 0xdc);
	else if (tag == 0xde || tag == 0xdf)
		v->kind = 'm', size = 2 << (tag - 0xde);
	else
		return 0;
	if (size) {
		if (end - p < size)
			return 0;
		v->number = (int64_t)big_endian(p, size);
		if (tag == 0xd0)
			v->number = (int8_t)v->number;
		v->data = p + size;
	}
	if ((v->kind == 's' || v->kind == 'f') && end - v->data < v->number)
		return 0;
	return 1;
}

static const uint8_t *skip(const uint8_t *p, const uint8_t *end) {
	int64_t left = 1;
	struct value v;
	while (left--) {
		if (!read_value(p, end, &v))
			return NULL;
		p = v.data + (v.kind == 's' || v.kind == 'f' ? v.number : 0);
		left += v.kind == 'm' ? 2 * v.number : v.kind == 'a' ? v.number : 0;
	}
	return p;
}

/* Find `name` in the map at `p`; returns where its value begins, NULL if it is not there. */
static const uint8_t *find(const uint8_t *p, const uint8_t *end, const char *name) {
	struct value map, key;
	if (!p || !read_value(p, end, &map) || map.kind != 'm')
		return NULL;
	p = map.data;
	for (int64_t i = 0; i < map.number; i++) {
		if (!read_value(p, end, &key))
			return NULL;
		const uint8_t *at = skip(p, end);
		if (at && key.kind == 's' && (size_t)key.number == strlen(name) && !memcmp(key.data, name, key.number))
			return at;
		if (!at || !(p = skip(at, end)))
			return NULL;
	}
	return NULL;
}

static int64_t integer(const uint8_t *p, const uint8_t *end, const char *name, int64_t otherwise) {
	struct value v;
	const uint8_t *at = find(p, end, name);
	return at && read_value(at, end, &v) && v.kind == 'i' ? v.number : otherwise;
}

static int text(const uint8_t *p, const uint8_t *end, const char *name, char *out, size_t room) {
	struct value v;
	const uint8_t *at = find(p, end, name);
	if (!at || !read_value(at, end, &v) || v.kind != 's')
		return 0;
	snprintf(out, room, "%.*s", (int)v.number, (const char *)v.data);
	return 1;
}

/* -- frames ------------------------------------------------------------------------------------------------------------------ */

struct frame {
	int kind, stream;
	uint64_t offset;
	const uint8_t *body, *end; /* of DATA: the bytes */
};

static void little_endian(uint8_t *p, uint64_t value, int bytes) {
	for (int i = 0; i < bytes; i++)
		p[i] = value >> (8 * i);
}

/* Send bytes, with descriptors beside the first of them; a broken socket shows at the next read. */
static void send_bytes(const uint8_t *data, size_t count, const int *fds, int fd_count) {
	while (count && sock >= 0) {
		union {
			char bytes[CMSG_SPACE(4 * sizeof(int))];
			struct cmsghdr align;
		} control = {0};
		struct iovec piece = {(void *)data, count};
		struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
		if (fd_count) {
			message.msg_control = control.bytes;
			message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
			struct cmsghdr *head = CMSG_FIRSTHDR(&message);
			head->cmsg_level = SOL_SOCKET;
			head->cmsg_type = SCM_RIGHTS;
			head->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
			memcpy(CMSG_DATA(head), fds, fd_count * sizeof(int));
		}
		ssize_t sent = sendmsg(sock, &message, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return;
		fd_count = 0;
		data += sent;
		count -= sent;
	}
}

static void send_frame(int kind, const struct buffer *body, const int *fds, int fd_count) {
	struct buffer whole = {0};
	uint8_t head[9] = {[4] = kind, [5] = 1}; /* one call at a time: channel 1 */
	little_endian(head, 5 + body->count, 4);
	put(&whole, head, 9);
	put(&whole, body->data, body->count);
	send_bytes(whole.data, whole.count, fds, fd_count);
	free(whole.data);
}

static void send_stream(int kind, int stream, uint64_t offset, const void *data, size_t count) {
	struct buffer body = {0};
	uint8_t head[9] = {stream};
	little_endian(head + 1, offset, 8);
	put(&body, head, 9);
	put(&body, data, count);
	send_frame(kind, &body, NULL, 0);
	free(body.data);
}

static void send_event(const char *type, const char *name, int value, const char *name2, int value2) {
	struct buffer body = {0};
	put_map(&body, name2 ? 3 : 2);
	put_string(&body, "type");
	put_string(&body, type);
	put_string(&body, name);
	put_int(&body, value);
	if (name2) {
		put_string(&body, name2);
		put_int(&body, value2);
	}
	send_frame(EVENT, &body, NULL, 0);
	free(body.data);
}

/* Take the next whole frame out of what was received; 0 if there is none yet. */
static int next_frame(struct frame *f) {
	static size_t taken;
	if (taken) {
		memmove(in_buffer, in_buffer + taken, in_count - taken);
		in_count -= taken;
		taken = 0;
	}
	if (in_count < 9)
		return 0;
	uint32_t length = in_buffer[0] | in_buffer[1] << 8 | in_buffer[2] << 16 | (uint32_t)in_buffer[3] << 24;
	if (length < 5 || length > FRAME_MAX)
		die(EXIT_LOST, "the node sent no frame");
	if (in_count < length + 4u)
		return 0;
	*f = (struct frame){.kind = in_buffer[4], .body = in_buffer + 9, .end = in_buffer + 4 + length};
	if (f->kind >= DATA && f->kind <= END) {
		if (f->end - f->body < 9)
			die(EXIT_LOST, "the node sent no frame");
		f->stream = f->body[0];
		for (int i = 8; i > 0; i--)
			f->offset = f->offset << 8 | f->body[i];
		f->body += 9;
	}
	taken = length + 4;
	return 1;
}

/* Receive once; 0 when the other end is gone. */
static int receive(void) {
	if (in_room - in_count < 65536) {
		in_room = in_room * 2 + 131072;
		in_buffer = realloc(in_buffer, in_room);
		if (!in_buffer)
			die(1, "out of memory");
	}
	ssize_t got;
	do
		got = recv(sock, in_buffer + in_count, in_room - in_count, 0);
	while (got < 0 && errno == EINTR);
	if (got <= 0)
		return 0;
	in_count += got;
	return 1;
}

static int connect_node(void) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	memcpy(address.sun_path, socket_path, sizeof address.sun_path);
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock >= 0 && connect(sock, (struct sockaddr *)&address, sizeof address) == 0)
		return 1;
	if (sock >= 0)
		close(sock);
	sock = -1;
	return 0;
}

/* The node's folder is where this program lies (DIR/bin/xos-ssh); paths.py says where the socket is then. */
static void find_socket(void) {
	char self[4096];
	ssize_t count = readlink("/proc/self/exe", self, sizeof self - 1);
	self[count < 0 ? 0 : count] = 0;
	for (int i = 0; i < 2; i++) {
		char *slash = strrchr(self, '/');
		if (slash)
			*slash = 0;
	}
	if (!strcmp(self, DEFAULT_DIR))
		strcpy(socket_path, DEFAULT_SOCKET);
	else if (snprintf(socket_path, sizeof socket_path, "%s/run/ssh.sock", self) >= (int)sizeof socket_path)
		die(1, "the path of the node's folder is too long");
}

static void begin_call(struct buffer *body, const char *method, int fds, int params) {
	put_map(body, 3);
	put_string(body, "fds");
	put_int(body, fds);
	put_string(body, "method");
	put_string(body, method);
	put_string(body, "params");
	put_map(body, params);
}

/* -- questions of sshd ------------------------------------------------------------------------------------------------------- */

static int ask(char **words, const char *method) {
	struct buffer body = {0};
	struct frame f;
	struct value list, line;
	if (!connect_node())
		die(1, "the node does not answer");
	begin_call(&body, method, 0, 4);
	const char *const names[] = {"user", "type", "key"};
	for (int i = 0; i < 3; i++) {
		put_string(&body, names[i]);
		put_string(&body, words[i]);
	}
	put_string(&body, "pid");
	put_int(&body, getppid());
	send_frame(CALL, &body, NULL, 0);
	while (!next_frame(&f))
		if (!receive())
			die(1, "the node ended before it answered");
	const uint8_t *at = f.kind == RESULT ? find(f.body, f.end, "lines") : NULL;
	if (!at || !read_value(at, f.end, &list) || list.kind != 'a')
		return 1;
	at = list.data;
	for (int64_t i = 0; i < list.number && at && read_value(at, f.end, &line) && line.kind == 's'; i++) {
		printf("%.*s\n", (int)line.number, (const char *)line.data);
		at = skip(at, f.end);
	}
	return 0;
}

static int gate(char **words) {
	if (!strcmp(words[0], "new")) {
		struct ifreq request = {.ifr_name = "lo"};
		int probe;
		if (unshare(CLONE_NEWNET) || (probe = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) < 0)
			die(1, "cannot make a network: %s", strerror(errno));
		request.ifr_flags = IFF_UP | IFF_RUNNING;
		if (ioctl(probe, SIOCSIFFLAGS, &request))
			die(1, "cannot switch the loopback on: %s", strerror(errno));
		close(probe);
	} else {
		int fd = open(words[0], O_RDONLY | O_CLOEXEC);
		if (fd < 0 || setns(fd, CLONE_NEWNET))
			die(1, "cannot enter network %s: %s", words[0], strerror(errno));
	}
	if (unshare(CLONE_NEWUTS) || sethostname(words[1], strlen(words[1])))
		die(1, "cannot take the name %s: %s", words[1], strerror(errno));
	execv(words[2], words + 2);
	die(1, "cannot start %s: %s", words[2], strerror(errno));
}

/* -- the session ------------------------------------------------------------------------------------------------------------- */

static char job[80];
static int64_t attempt;
static int has_tty, out_closed, in_ended, is_attached, eof_sent, signals;
static uint8_t input[INPUT_MAX];
static uint64_t input_from, output_at; /* stream offset of input[0]; terminal bytes that were written */
static size_t input_count;

static void put_environment(struct buffer *body) {
	static const char *const carried[] = {"TERM=", "LANG=", "LC_", "LANGUAGE=", "COLORTERM=", "TZ=", "DISPLAY=", "SSH_CONNECTION="};
	extern char **environ;
	struct buffer rows = {0};
	uint32_t count = 0;
	for (char **row = environ; *row; row++)
		for (size_t i = 0; i < sizeof carried / sizeof *carried; i++)
			if (!strncmp(*row, carried[i], strlen(carried[i])) && strchr(*row, '=')) {
				char *equals = strchr(*row, '=');
				put_text(&rows, *row, equals - *row);
				put_string(&rows, equals + 1);
				count++;
				break;
			}
	put_map(body, count);
	if (rows.count)
		put(body, rows.data, rows.count);
	free(rows.data);
}

/* What sshd noted of the log-in: a line `publickey CERTIFICATE`. */
static void put_certificate(struct buffer *body) {
	char noted[CERT_MAX];
	const char *path = getenv("SSH_USER_AUTH");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
	if (fd < 0)
		die(1, "this account is for log-ins by ssh with a session's certificate");
	ssize_t count = read(fd, noted, sizeof noted - 1);
	close(fd);
	put_text(body, noted, count < 0 ? 0 : count);
}

static void start(const char *command) {
	struct buffer body = {0};
	struct winsize size = {0};
	int fds[4], fd_count = 0;
	int network = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (network < 0)
		die(1, "no network: %s", strerror(errno));
	if (!has_tty)
		for (int fd = 0; fd < 3; fd++)
			fds[fd_count++] = fd;
	fds[fd_count++] = network;
	if (!connect_node())
		die(EXIT_LOST, "the node's software is not running");
	begin_call(&body, "ssh.start", fd_count, 6);
	put_string(&body, "auth");
	put_certificate(&body);
	put_string(&body, "command");
	put_string(&body, command);
	put_string(&body, "tty");
	put_int(&body, has_tty);
	if (has_tty)
		ioctl(0, TIOCGWINSZ, &size);
	put_string(&body, "rows");
	put_int(&body, size.ws_row ? size.ws_row : 24);
	put_string(&body, "cols");
	put_int(&body, size.ws_col ? size.ws_col : 80);
	put_string(&body, "env");
	put_environment(&body);
	send_frame(CALL, &body, fds, fd_count);
	free(body.data);
	close(network);
}

static void __attribute__((noreturn)) end_as(const uint8_t *record, const uint8_t *end) {
	char reason[200];
	int number = (int)integer(record, end, "signal", 0);
	int code = (int)integer(record, end, "code", EXIT_LOST);
	restore();
	if (text(record, end, "reason", reason, sizeof reason))
		fprintf(stderr, "xos: %s\n", reason);
	if (number > 0 && number <= 64) { /* sshd tells the client `exit-signal` */
		struct rlimit none = {0, 0};
		sigset_t all;
		setrlimit(RLIMIT_CORE, &none);
		signal(number, SIG_DFL);
		sigfillset(&all);
		sigprocmask(SIG_UNBLOCK, &all, NULL);
		raise(number);
		code = 128 + number;
	}
	exit(code & 255);
}

static void __attribute__((noreturn)) end_with_error(const struct frame *f) {
	char message[2000] = "the node refused", hint[1000] = "";
	text(f->body, f->end, "message", message, sizeof message);
	text(f->body, f->end, "hint", hint, sizeof hint);
	die((int)integer(f->body, f->end, "exit_code", 1), "%s%s%s", message, *hint ? "; " : "", hint);
}

static void accepted(uint64_t upto) {
	if (upto <= input_from || upto - input_from > input_count)
		return;
	size_t gone = upto - input_from;
	memmove(input, input + gone, input_count - gone);
	input_count -= gone;
	input_from = upto;
}

static void on_event(const struct frame *f) {
	char type[40] = "";
	text(f->body, f->end, "type", type, sizeof type);
	if (!strcmp(type, "started")) {
		text(f->body, f->end, "job", job, sizeof job);
		attempt = integer(f->body, f->end, "attempt", 1);
		if (!has_tty) { /* the job has them now; our copies would hide its closing them */
			int null = open("/dev/null", O_RDWR | O_CLOEXEC);
			dup2(null, 0);
			dup2(null, 1);
			close(null);
		}
	} else if (!strcmp(type, "attached")) {
		accepted((uint64_t)integer(f->body, f->end, "stdin", 0));
		is_attached = 1;
		eof_sent = 0;
		if (input_count)
			send_stream(DATA, 0, input_from, input, input_count);
	}
}

static void on_output(const struct frame *f) {
	const uint8_t *p = f->body;
	uint64_t begin = f->offset;
	if (begin < output_at) /* sent twice after connecting again */
		p += output_at - begin < (uint64_t)(f->end - p) ? output_at - begin : (uint64_t)(f->end - p);
	while (p < f->end && !out_closed) {
		ssize_t written = write(1, p, f->end - p);
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			out_closed = 1;
		else
			p += written;
	}
	uint64_t upto = begin + (f->end - f->body);
	if (upto > output_at)
		output_at = upto;
	send_stream(ACK, f->stream, output_at, "", 0);
}

static void on_frame(const struct frame *f) {
	switch (f->kind) {
	case EVENT:
		on_event(f);
		break;
	case DATA:
		on_output(f);
		break;
	case ACK:
		accepted(f->offset);
		break;
	case END:
		send_stream(ACK, f->stream, f->offset, "", 0);
		break;
	case RESULT:
		end_as(find(f->body, f->end, "exit"), f->end);
	case ERROR:
		end_with_error(f);
	}
}

static void on_signals(void) {
	struct signalfd_siginfo one;
	while (read(signals, &one, sizeof one) == sizeof one) {
		struct winsize size;
		if (one.ssi_signo != SIGWINCH)
			send_event("signal", "signal", one.ssi_signo, NULL, 0);
		else if (has_tty && ioctl(0, TIOCGWINSZ, &size) == 0)
			send_event("winsize", "rows", size.ws_row, "cols", size.ws_col);
	}
}

static void on_input(void) {
	ssize_t got = read(0, input + input_count, INPUT_MAX - input_count);
	if (got > 0) {
		send_stream(DATA, 0, input_from + input_count, input + input_count, got);
		input_count += got;
	} else if (got == 0 || errno != EINTR) {
		in_ended = 1; /* sshd's terminal is gone: the hang-up comes as a signal */
	}
}

/* xosd ended; the job did not. Wait for the next xosd and go on where we were. */
static void again(void) {
	if (!*job)
		die(EXIT_LOST, "the node's software ended while the program was started");
	close(sock);
	sock = -1;
	in_count = 0;
	is_attached = 0;
	for (int tries = AGAIN_S * 1000 / AGAIN_MS; !connect_node(); tries--) {
		if (!tries)
			die(EXIT_LOST, "the node's software is gone; job %s may still run", job);
		poll(NULL, 0, AGAIN_MS);
	}
	struct buffer body = {0};
	begin_call(&body, "ssh.again", 0, 4);
	put_string(&body, "job");
	put_string(&body, job);
	put_string(&body, "attempt");
	put_int(&body, (uint32_t)attempt);
	put_string(&body, "tty");
	put_int(&body, has_tty);
	put_string(&body, "output");
	put_head(&body, 0xcf, (uint32_t)(output_at >> 32));
	uint8_t low[4] = {output_at >> 24, output_at >> 16, output_at >> 8, output_at};
	put(&body, low, 4);
	send_frame(CALL, &body, NULL, 0);
	free(body.data);
}

static void __attribute__((noreturn)) session(void) {
	struct frame f;
	for (;;) {
		struct pollfd ready[3] = {{sock, POLLIN, 0}, {signals, POLLIN, 0}, {-1, POLLIN, 0}};
		if (has_tty && is_attached && !in_ended && input_count < INPUT_MAX)
			ready[2].fd = 0;
		if (poll(ready, 3, -1) < 0 && errno != EINTR)
			die(1, "poll: %s", strerror(errno));
		if (ready[1].revents)
			on_signals();
		if (ready[2].revents)
			on_input();
		if (!ready[0].revents)
			continue;
		if (!receive()) {
			again();
			continue;
		}
		while (next_frame(&f))
			on_frame(&f);
	}
}

static void prepare(void) {
	sigset_t wanted;
	sigemptyset(&wanted);
	const int numbers[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH};
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		sigaddset(&wanted, numbers[i]);
	sigprocmask(SIG_BLOCK, &wanted, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTTOU, SIG_IGN);
	signals = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
	prctl(PR_SET_PDEATHSIG, SIGHUP); /* the connection ended: sshd tells only those that have a terminal */
	has_tty = isatty(0) && isatty(1);
	if (has_tty && tcgetattr(0, &saved) == 0) {
		struct termios raw = saved;
		cfmakeraw(&raw);
		is_raw = tcsetattr(0, TCSANOW, &raw) == 0;
	}
}

int main(int argc, char **argv) {
	find_socket();
	if (argc == 5 && !strcmp(argv[1], "principals"))
		return ask(argv + 2, "ssh.principals");
	if (argc == 5 && !strcmp(argv[1], "keys"))
		return ask(argv + 2, "ssh.keys");
	if (argc >= 5 && !strcmp(argv[1], "gate"))
		return gate(argv + 2);
	const char *command = getenv("SSH_ORIGINAL_COMMAND");
	prepare();
	start(command ? command : "");
	session();
}
