/*
 * A peer of inaccfs in C: fetches a page frame, and lets go of pages when told to.
 *
 *   cc -Wall -o client client.c
 *   ./client MOUNTPOINT /FILE        until SIGINT, or until the mount ends
 *
 * It prints a line for each event. docs/client.md explains it. The daemon sends one
 * object a line, and no text here has a quote in it, so scanning for a member is enough;
 * a VMM has a JSON library already.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

static FILE *input;
static int sock;
static char *line;
static size_t room;

static void die(const char *what)
{
	fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The number of a member of the last line; -1 if it has none. */
static long long number(const char *member)
{
	char key[64];
	const char *at;

	snprintf(key, sizeof(key), "\"%s\":", member);
	at = strstr(line, key);
	return at ? atoll(at + strlen(key)) : -1;
}

static int connect_to(const char *mountpoint)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	/* The mount tells its socket; what is not set ends the string. */
	if (getxattr(mountpoint, "user.inaccfs.control", address.sun_path,
		     sizeof(address.sun_path) - 1) < 0)
		die(mountpoint);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
		die(address.sun_path);
	return fd;
}

/* Send a command, with an fd unless that is negative. */
static void send_command(const char *text, int fd)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)),
				  .cmsg_level = SOL_SOCKET,
				  .cmsg_type = SCM_RIGHTS } };
	struct iovec bytes = { (void *)text, strlen(text) };
	struct msghdr message = { .msg_iov = &bytes, .msg_iovlen = 1 };

	if (fd >= 0) {
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
	}
	/* A command of some bytes is sent whole, or the daemon has gone. */
	if (sendmsg(sock, &message, MSG_NOSIGNAL) != (ssize_t)bytes.iov_len)
		die("send");
}

static void read_line(void)
{
	if (getline(&line, &room, input) < 0) {
		fprintf(stderr, "client: the mount has ended\n");
		exit(0);
	}
}

/* Whether the last line is an event that waits for an answer: it has a sequence. */
static int is_event(void)
{
	return strstr(line, "\"event\":") && number("sequence") >= 0;
}

/* An event means that pages go: let go of them, here, and only then answer. */
static void answer_event(void)
{
	char done[160];

	printf("%lld to %lld go\n", number("start"), number("end"));
	snprintf(done, sizeof(done),
		 "{\"execute\":\"invalidate-done\",\"arguments\":"
		 "{\"notifier\":%lld,\"sequence\":%lld}}\n",
		 number("notifier"), number("sequence"));
	send_command(done, -1);
}

/* Carry out a command; on the way to its reply there may be events. */
static void execute(const char *text, int fd)
{
	send_command(text, fd);
	for (;;) {
		read_line();
		if (is_event())
			answer_event();
		else if (strstr(line, "\"error\":")) {
			fprintf(stderr, "client: %s", line);
			exit(1);
		} else if (strstr(line, "\"return\":") && strstr(line, "\"id\":"))
			return;
	}
}

int main(int argc, char **argv)
{
	char path[4096];
	int file;

	if (argc != 3) {
		fprintf(stderr, "usage: client MOUNTPOINT /FILE\n");
		return 2;
	}
	setlinebuf(stdout);
	snprintf(path, sizeof(path), "%s%s", argv[1], argv[2]);
	file = open(path, O_RDWR | O_CLOEXEC);
	if (file < 0)
		die(path);
	sock = connect_to(argv[1]);
	input = fdopen(dup(sock), "r");
	read_line(); /* the greeting */
	execute("{\"execute\":\"qmp_capabilities\",\"id\":1}\n", -1);
	execute("{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"guest\"},\"id\":2}\n", file);
	execute("{\"execute\":\"register-notifier\",\"arguments\":{\"file\":\"guest\"},\"id\":3}\n", -1);
	execute("{\"execute\":\"get-pfn\",\"arguments\":{\"file\":\"guest\",\"offset\":0},\"id\":4}\n", -1);
	printf("page 0 is frame %lld\n", number("pfn"));
	for (;;) {
		read_line();
		if (is_event())
			answer_event();
	}
}
