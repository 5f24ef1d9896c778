/*
 * relayctl, pfctl and relayd -n of the lab: carry the words to the emulator and print what it
 * answers.
 *
 * The name of the program decides.  The words go out separated by NUL; the answer is a row of
 * frames: a letter, four bytes of length (big endian), bytes.  o: to stdout, e: to stderr, x: one
 * byte, the exit code.  An answer that ends before x is a relayd that died.
 *
 * The socket is relayd.sock or pf.sock beside this program, or what HACTL_LAB_SOCKET or
 * HACTL_LAB_PF says, or relayctl's -s.
 */

#include <sys/types.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <err.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *
beside(const char *program, const char *name)
{
	static char	 path[4096];
	const char	*slash;
	ssize_t		 len;
	size_t		 dir;

	if ((len = readlink("/proc/self/exe", path, sizeof(path) - 1)) > 0) {
		path[len] = '\0';
		program = path;
	}
	slash = strrchr(program, '/');
	dir = slash == NULL ? 0 : (size_t)(slash - program) + 1;
	if (dir + strlen(name) >= sizeof(path))
		errx(1, "path too long");
	memmove(path, program, dir);
	strcpy(path + dir, name);
	return (path);
}

static int
dial(const char *program, const char *path)
{
	struct sockaddr_un	 sun;
	int			 s;

	memset(&sun, 0, sizeof(sun));
	sun.sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(sun.sun_path)) {
		errno = ENAMETOOLONG;
		err(1, "connect: %s", path);
	}
	strcpy(sun.sun_path, path);
	if ((s = socket(AF_UNIX, SOCK_STREAM, 0)) == -1)
		err(1, "socket");
	if (connect(s, (struct sockaddr *)&sun, sizeof(sun)) == -1)
		err(1, strcmp(program, "relayctl") != 0 ? "%s" : "connect: %s", path);
	return (s);
}

static void
say(int s, const char *text, size_t len)
{
	ssize_t	 n;

	for (; len > 0; text += n, len -= (size_t)n)
		if ((n = send(s, text, len, MSG_NOSIGNAL)) == -1)
			errx(1, "pipe closed");
}

static void
hear(int s, void *buf, size_t len)
{
	char	*p = buf;
	ssize_t	 n;

	for (; len > 0; p += n, len -= (size_t)n)
		if ((n = read(s, p, len)) <= 0) {
			fflush(stdout);
			errx(1, "pipe closed");
		}
}

int
main(int argc, char *argv[])
{
	const char	*name, *path;
	unsigned char	 head[5], code;
	char		 buf[65536];
	size_t		 len, part;
	int		 ch, s, first = 1;

	name = strrchr(argv[0], '/');
	name = name == NULL ? argv[0] : name + 1;
	if (strcmp(name, "pfctl") == 0 || strcmp(name, "relayd") == 0) {
		if ((path = getenv("HACTL_LAB_PF")) == NULL)
			path = beside(argv[0], "pf.sock");
	} else {
		if ((path = getenv("HACTL_LAB_SOCKET")) == NULL)
			path = beside(argv[0], "relayd.sock");
		/* getopt would say argv[0], path and all; relayctl is run by name */
		argv[0] = (char *)"relayctl";
		while ((ch = getopt(argc, argv, "s:")) != -1) {
			if (ch != 's') {
				fprintf(stderr, "usage: relayctl [-s socket] "
				    "command [argument ...]\n");
				return (1);
			}
			path = optarg;
		}
		first = optind;
	}

	s = dial(name, path);
	say(s, name, strlen(name));
	for (; first < argc; first++) {
		say(s, "", 1);
		say(s, argv[first], strlen(argv[first]));
	}
	shutdown(s, SHUT_WR);

	for (;;) {
		hear(s, head, sizeof(head));
		len = (size_t)head[1] << 24 | (size_t)head[2] << 16 |
		    (size_t)head[3] << 8 | head[4];
		if (head[0] == 'x') {
			hear(s, &code, 1);
			return (code);
		}
		for (; len > 0; len -= part) {
			part = len < sizeof(buf) ? len : sizeof(buf);
			hear(s, buf, part);
			fwrite(buf, 1, part, head[0] == 'o' ? stdout : stderr);
		}
	}
}
