// target holds open files of every kind, in one or many threads, and checks by
// itself that nothing about them changes. It is what tests swap files in.
//
//   target hold DIR      every kind of object, every kind of blocking call
//   target files DIR N T opens N files DIR/f0… in T threads that sleep
//   target spin DIR      computes without system calls, checks the results
//   target signals DIR N counts N queued signals that a child sends
//   target storm DIR     forks and makes threads without end
//   target vfork DIR     its first thread sleeps in vfork until "quit"
//   target seccomp DIR   one file, under a filter that kills for open, socket, mmap and more
//   target leaderless DIR its first thread has ended
//   target inherit DIR   reads from descriptor 3, opens nothing
//   target held DIR WHAT… files that the kernel holds: flight ring aio inotify fanotify epoll lease, in held.h
//   target tables DIR    threads with descriptor tables and directories of their own
//
// With TARGET_NOT_DUMPABLE in its environment it lets nobody look into it (PR_SET_DUMPABLE).
//
// It prints "ready", then answers each line of stdin: "check" with "ok" or a
// line that starts with "bad"; "flip" (files) changes a close-on-exec flag; "take" (held) receives; "quit" ends it, with status 0 if all was well.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char bads[8192];
static pthread_mutex_t bads_mu = PTHREAD_MUTEX_INITIALIZER;

static void bad(const char *fmt, ...) {
	char b[512];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(b, sizeof b, fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&bads_mu);
	if (strlen(bads) + strlen(b) + 3 < sizeof bads) {
		strcat(bads, "; ");
		strcat(bads, b);
	}
	pthread_mutex_unlock(&bads_mu);
}

static void die(const char *what) {
	printf("bad: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(2);
}

static int need(int r, const char *what) {
	if (r < 0)
		die(what);
	return r;
}

static int nfiles, *fds, *cloexec;
static void check_flight(void);

// flip changes close-on-exec of the first file of "files".
static void flip(void) {
	cloexec[0] = !cloexec[0];
	need(fcntl(fds[0], F_SETFD, cloexec[0] ? FD_CLOEXEC : 0), "F_SETFD");
}

// serve answers stdin; check looks at everything.
static int serve(void (*check)(void)) {
	char line[64];
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (!strncmp(line, "flip", 4))
			flip();
		if (!strncmp(line, "take", 4))
			check_flight();
		if (check)
			check();
		if (bads[0])
			printf("bad: %s\n", bads + 2);
		else
			printf("ok\n");
		fflush(stdout);
		if (!strncmp(line, "quit", 4))
			break;
	}
	return bads[0] ? 1 : 0;
}

// ---- hold

static char page[4096];
static int f_rw, f_dup, f_append, f_direct, f_path, f_noatime, f_sync, f_own, f_gone, f_tmp, f_flock, f_lock, f_fifo, f_sock, f_cloexec, f_empty, f_ofd;
static int child_to[2], child_from[2];
static DIR *dir;
static char *m_shared, *m_private, *m_ro, *m_locked, *m_shared_ro;
static int dir_left;
static off_t rw_at;

static int opened(const char *name, int flags) {
	int fd = open(name, flags, 0644);
	if (fd < 0) {
		perror(name);
		die(name);
	}
	return fd;
}

static void want_flags(int fd, int flags, const char *what) {
	int fl = fcntl(fd, F_GETFL);
	if ((fl & flags) != flags)
		bad("%s: flags %#o", what, fl);
}

static void same_bytes(int fd, off_t at, const char *what) {
	char b[16];
	ssize_t n = pread(fd, b, sizeof b, at);
	if (n != sizeof b || memcmp(b, page + at, sizeof b))
		bad("%s: read %zd at %ld: %s", what, n, (long)at, n < 0 ? strerror(errno) : "other bytes");
}

static void lock_by_other(int fd, int want, const char *what) {
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 20};
	pid_t p = fork();
	if (p == 0) {
		int r = fcntl(fd, F_GETLK, &l);
		_exit(r < 0 ? 9 : l.l_type == F_UNLCK ? 0 : 1);
	}
	int st;
	waitpid(p, &st, 0);
	if (!WIFEXITED(st) || WEXITSTATUS(st) != want)
		bad("%s: another process sees %d", what, st >> 8);
}

static void check_hold(void) {
	char b[64], c;
	// offsets: one description, three holders
	if (lseek(f_rw, 0, SEEK_CUR) != rw_at || lseek(f_dup, 0, SEEK_CUR) != rw_at)
		bad("offset %ld and %ld, not %ld", (long)lseek(f_rw, 0, SEEK_CUR), (long)lseek(f_dup, 0, SEEK_CUR), (long)rw_at);
	if (read(f_dup, b, 3) != 3 || memcmp(b, page + rw_at, 3))
		bad("read through dup");
	rw_at += 3;
	if (lseek(f_rw, 0, SEEK_CUR) != rw_at)
		bad("dup no longer shares the offset");
	if (write(child_to[1], "r", 1) != 1 || read(child_from[0], &c, 1) != 1 || c != page[rw_at])
		bad("child reads %d", c);
	rw_at += 1;
	if (lseek(f_rw, 0, SEEK_CUR) != rw_at)
		bad("child no longer shares the offset");
	if (rw_at > 4000) {
		rw_at = 5;
		lseek(f_rw, rw_at, SEEK_SET);
	}
	struct stat st;
	off_t end = fstat(f_append, &st) ? -1 : st.st_size;
	if (pwrite(f_append, "x", 1, 0) != 1 || fstat(f_append, &st) || st.st_size != end + 1)
		bad("append");
	want_flags(f_append, O_APPEND | O_WRONLY, "append");
	if (f_direct >= 0) {
		want_flags(f_direct, O_DIRECT, "direct");
		void *p = 0;
		if (posix_memalign(&p, 4096, 4096) || pread(f_direct, p, 4096, 0) != 4096 || memcmp(p, page, 4096))
			bad("direct read");
		free(p);
	}
	if (read(f_path, b, 1) != -1 || errno != EBADF)
		bad("O_PATH can read");
	want_flags(f_noatime, O_NOATIME | O_NONBLOCK, "noatime");
	want_flags(f_sync, O_SYNC, "sync");
	if (fcntl(f_own, F_GETOWN) != getpid())
		bad("owner is %d", fcntl(f_own, F_GETOWN));
	if (fcntl(f_own, F_GETSIG) != SIGRTMIN + 3)
		bad("F_GETSIG %d", fcntl(f_own, F_GETSIG));
	same_bytes(f_gone, 100, "unlinked");
	if (fstat(f_gone, &st) || st.st_nlink != 0)
		bad("unlinked has %d links", (int)st.st_nlink);
	if (f_tmp >= 0)
		same_bytes(f_tmp, 200, "tmpfile");
	lock_by_other(f_lock, 1, "posix lock");
	if (fcntl(f_cloexec, F_GETFD) != FD_CLOEXEC || fcntl(f_rw, F_GETFD) != 0)
		bad("close-on-exec");
	if (fstat(f_fifo, &st) || !S_ISFIFO(st.st_mode) || write(f_fifo, "f", 1) != 1 || read(f_fifo, b, 1) != 1)
		bad("fifo");
	if (fstat(f_sock, &st) || !S_ISSOCK(st.st_mode))
		bad("socket");
	if (f_empty != -1 && fcntl(f_empty, F_GETFD) != -1)
		bad("descriptor %d appeared", f_empty);
	// directory position: every name once
	if (dir_left > 0) {
		struct dirent *e = readdir(dir);
		if (!e)
			bad("directory ends early");
		else
			dir_left--;
	}
	int fd = openat(dirfd(dir), "rw", O_RDONLY);
	if (fd < 0)
		bad("openat: %s", strerror(errno));
	else
		close(fd);
	fd = open("rw", O_RDONLY); // by cwd
	if (fd < 0)
		bad("open in cwd: %s", strerror(errno));
	else {
		same_bytes(fd, 0, "by cwd");
		close(fd);
	}
	if (!getcwd(b, 1) && errno != ERANGE)
		bad("getcwd: %s", strerror(errno));
	// maps
	static int n;
	n++;
	m_shared[300] = (char)n;
	fd = opened("map", O_RDONLY);
	if (pread(fd, b, 1, 300) != 1 || b[0] != (char)n)
		bad("shared map and file differ");
	close(fd);
	for (int i = 0; i < 16384; i++) {
		char w = i >= 4096 && i < 4096 + 5000 ? (char)(i * 7) : page[i % 4096];
		if (m_private[i] != w) {
			bad("private map at %d", i);
			break;
		}
	}
	if (memcmp(m_ro + 4096, "modified", 8) || memcmp(m_ro, page, 4096))
		bad("read-only private map");
	if (memcmp(m_locked, page, 64) || memcmp(m_shared_ro, page, 64))
		bad("map contents");
	if (mprotect(m_shared_ro, 4096, PROT_READ | PROT_WRITE) || mprotect(m_shared_ro, 4096, PROT_READ))
		bad("mprotect: %s", strerror(errno));
}

static void make_file(const char *name, int pages) {
	int fd = opened(name, O_RDWR | O_CREAT | O_TRUNC);
	for (int i = 0; i < pages; i++)
		if (write(fd, page, 4096) != 4096)
			die(name);
	close(fd);
}

// blocked calls: none of them may ever return

static int sv[2], ls, ep, pip[2], msq, sems;

static void returned(const char *what, long r) { bad("%s returned %ld, errno %s", what, r, strerror(errno)); }

static void *b_nanosleep(void *a) { struct timespec t = {3600, 0}; returned("nanosleep", nanosleep(&t, 0)); return a; }
static void *b_futex(void *a) { static int w; returned("futex", syscall(SYS_futex, &w, FUTEX_WAIT, 0, 0, 0, 0)); return a; }
static void *b_futex_to(void *a) { static int w; struct timespec t = {3600, 0}; returned("futex with time-out", syscall(SYS_futex, &w, FUTEX_WAIT, 0, &t, 0, 0)); return a; }
static void *b_poll(void *a) { struct pollfd p = {pip[0], POLLIN, 0}; returned("poll", poll(&p, 1, -1)); return a; }
static void *b_poll_to(void *a) { struct pollfd p = {pip[0], POLLIN, 0}; returned("poll with time-out", poll(&p, 1, 3600000)); return a; }
static void *b_select(void *a) { fd_set s; FD_ZERO(&s); FD_SET(pip[0], &s); returned("select", select(pip[0] + 1, &s, 0, 0, 0)); return a; }
static void *b_epoll(void *a) { struct epoll_event e; returned("epoll_wait", epoll_wait(ep, &e, 1, -1)); return a; }
static void *b_epoll_to(void *a) { struct epoll_event e; returned("epoll_wait with time-out", epoll_wait(ep, &e, 1, 3600000)); return a; }
static void *b_epoll_p(void *a) { struct epoll_event e; sigset_t s; sigemptyset(&s); returned("epoll_pwait", epoll_pwait(ep, &e, 1, -1, &s)); return a; }
static void *b_read(void *a) { char c; returned("read", read(pip[0], &c, 1)); return a; }
static void *b_accept(void *a) { returned("accept", accept(ls, 0, 0)); return a; }
static void *b_recv(void *a) { char c; returned("recv", recv(sv[0], &c, 1, 0)); return a; }
static void *b_recv_to(void *a) { char c; returned("recv with SO_RCVTIMEO", recv(sv[1], &c, 1, 0)); return a; }
static void *b_sigwait(void *a) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); struct timespec t = {3600, 0}; returned("sigtimedwait", sigtimedwait(&s, 0, &t)); return a; }
static void *b_semop(void *a) { struct sembuf o = {0, -1, 0}; returned("semop", semop(sems, &o, 1)); return a; }
static void *b_msgrcv(void *a) { struct { long t; char c; } m; returned("msgrcv", msgrcv(msq, &m, 1, 0, 0)); return a; }
static void *b_pause(void *a) { returned("pause", pause()); return a; }
static void *b_spin(void *a) { for (volatile uint64_t i = 0;; i++) { if (i % 4096 == 0) usleep(2000); } return a; }

static void *(*const blockers[])(void *) = {b_nanosleep, b_futex, b_futex_to, b_poll, b_poll_to, b_select, b_epoll, b_epoll_to, b_epoll_p, b_read,
	b_accept, b_recv, b_recv_to, b_sigwait, b_semop, b_msgrcv, b_pause, b_spin};

static void no_sem(void) {
	semctl(sems, 0, IPC_RMID);
	msgctl(msq, IPC_RMID, 0);
}

static void start_blockers(void) {
	need(pipe2(pip, O_CLOEXEC), "pipe");
	need(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), "socketpair");
	struct timeval tv = {3600, 0};
	need(setsockopt(sv[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv), "SO_RCVTIMEO");
	ls = need(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	need(bind(ls, (void *)&sa, sizeof(sa_family_t)), "bind"); // autobind
	need(listen(ls, 1), "listen");
	ep = need(epoll_create1(0), "epoll");
	struct epoll_event ev = {.events = EPOLLIN};
	need(epoll_ctl(ep, EPOLL_CTL_ADD, pip[0], &ev), "epoll_ctl");
	sems = need(semget(IPC_PRIVATE, 1, 0600), "semget");
	msq = need(msgget(IPC_PRIVATE, 0600), "msgget");
	atexit(no_sem);
	for (size_t i = 0; i < sizeof blockers / sizeof *blockers; i++) {
		pthread_t t;
		if (pthread_create(&t, 0, blockers[i], 0))
			die("thread");
	}
	usleep(200000); // all are asleep then
}

static int hold(void) {
	make_file("rw", 1);
	make_file("gone", 1);
	make_file("map", 4);
	for (int i = 0; i < 40; i++) {
		char n[32];
		mkdir("dir", 0755);
		snprintf(n, sizeof n, "dir/entry%d", i);
		make_file(n, 0);
	}
	make_file("dir/rw", 1);
	mkfifo("fifo", 0644);
	unlink("sock");

	f_rw = opened("rw", O_RDWR);
	rw_at = lseek(f_rw, 5, SEEK_SET);
	f_dup = need(dup(f_rw), "dup");
	f_append = opened("append", O_WRONLY | O_CREAT | O_APPEND);
	f_direct = open("rw", O_RDONLY | O_DIRECT); // not on every file system
	f_path = opened("rw", O_PATH);
	f_noatime = opened("rw", O_RDONLY | O_NOATIME | O_NONBLOCK);
	f_sync = opened("rw", O_RDWR | O_SYNC);
	f_own = opened("rw", O_RDWR);
	need(fcntl(f_own, F_SETOWN, getpid()), "F_SETOWN");
	need(fcntl(f_own, F_SETSIG, SIGRTMIN + 3), "F_SETSIG");
	f_gone = opened("gone", O_RDWR);
	need(unlink("gone"), "unlink");
	f_tmp = open(".", O_TMPFILE | O_RDWR, 0600);
	if (f_tmp >= 0 && write(f_tmp, page, 4096) != 4096)
		die("tmpfile");
	f_lock = opened("lock", O_RDWR | O_CREAT); // a file that is never closed: any close drops the lock
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 20};
	need(fcntl(f_lock, F_SETLK, &l), "F_SETLK");
	f_flock = opened("append", O_RDONLY);
	need(flock(f_flock, LOCK_EX), "flock");
	f_cloexec = opened("rw", O_RDONLY | O_CLOEXEC);
	f_fifo = opened("fifo", O_RDWR);
	f_sock = need(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	struct sockaddr_un sa = {.sun_family = AF_UNIX, .sun_path = "sock"};
	need(bind(f_sock, (void *)&sa, sizeof sa), "bind");
	int hole = opened("rw", O_RDONLY);
	f_ofd = opened("rw", O_RDONLY);
	close(hole); // a hole in the table stays one
	dir = opendir("dir");
	for (int i = 0; i < 10; i++)
		readdir(dir);
	dir_left = 40 + 1 + 2 - 10;
	int fd = opened("map", O_RDWR);
	m_shared = mmap(0, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	m_shared_ro = mmap(0, 4096, PROT_READ, MAP_SHARED, f_rw, 0);
	close(fd);
	fd = opened("rwmap", O_RDWR | O_CREAT | O_TRUNC);
	for (int i = 0; i < 4; i++)
		if (write(fd, page, 4096) != 4096)
			die("rwmap");
	m_private = mmap(0, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	m_ro = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	m_locked = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (m_shared == MAP_FAILED || m_private == MAP_FAILED || m_ro == MAP_FAILED || m_locked == MAP_FAILED || m_shared_ro == MAP_FAILED)
		die("mmap");
	for (int i = 4096; i < 4096 + 5000; i++)
		m_private[i] = (char)(i * 7);
	memcpy(m_ro + 4096, "modified", 8);
	need(mprotect(m_ro, 8192, PROT_READ), "mprotect");
	need(mlock(m_locked, 4096), "mlock");
	need(pipe(child_to), "pipe");
	need(pipe(child_from), "pipe");
	if (fork() == 0) {
		char c;
		close(child_to[1]);
		while (read(child_to[0], &c, 1) == 1)
			if (read(f_rw, &c, 1) != 1 || write(child_from[1], &c, 1) != 1)
				_exit(1);
		_exit(0);
	}
	close(child_to[0]);
	start_blockers();
	f_empty = 600;
	while (fcntl(f_empty, F_GETFD) != -1)
		f_empty++;
	return serve(check_hold);
}

// ---- files

static void check_files(void) {
	for (int i = 0; i < nfiles; i++) {
		char b[16] = "", w[16];
		int n = snprintf(w, sizeof w, "%d", i);
		if (pread(fds[i], b, n, 0) != n || memcmp(b, w, n))
			bad("file %d: %s", i, b);
		if (lseek(fds[i], 0, SEEK_CUR) != i % 7)
			bad("file %d: offset", i);
		int fl = fcntl(fds[i], F_GETFD);
		if (fl != (cloexec[i] ? FD_CLOEXEC : 0))
			bad("file %d: close-on-exec %d", i, fl);
	}
}

// SIGUSR1 is handled for as long as no SIGUSR2 comes.
static atomic_int handled;
static void on_usr1(int s) {
	(void)s;
	while (!handled)
		usleep(1000);
}
static void on_usr2(int s) { (void)s; handled = 1; }

static int files(int n, int threads) {
	signal(SIGUSR1, on_usr1);
	signal(SIGUSR2, on_usr2);
	nfiles = n;
	fds = calloc(n, sizeof *fds);
	cloexec = calloc(n, sizeof *cloexec);
	for (int i = 0; i < n; i++) {
		char name[32];
		snprintf(name, sizeof name, "f%d", i);
		cloexec[i] = i % 3 == 0;
		fds[i] = opened(name, O_RDWR | O_CREAT | (cloexec[i] ? O_CLOEXEC : 0));
		int k = snprintf(name, sizeof name, "%d", i);
		if (pwrite(fds[i], name, k, 0) != k)
			die(name);
		lseek(fds[i], i % 7, SEEK_SET);
	}
	for (int i = 1; i < threads; i++) {
		pthread_t t;
		pthread_attr_t a;
		pthread_attr_init(&a);
		pthread_attr_setstacksize(&a, 65536);
		if (pthread_create(&t, &a, i % 2 ? b_pause : b_nanosleep, 0))
			die("thread");
	}
	return serve(check_files);
}

// ---- spin

static atomic_int stop;
static void on_term(int s) { (void)s; stop = 1; }

// step is a chain of adds with carry: a lost flag changes the result.
static uint64_t chain(uint64_t x) {
#if defined __x86_64__
	uint64_t a = x, b = ~x, c = x * 3;
	for (int i = 0; i < 64; i++)
		__asm__ volatile("add %3, %0\n\tadc %4, %1\n\tadc %0, %2\n\tjnc 1f\n\tadd $1, %0\n1:\tjo 2f\n\txor $5, %1\n2:\tstd\n\tcld\n"
			: "+r"(a), "+r"(b), "+r"(c) : "r"(x), "r"(0x9e3779b97f4a7c15ull) : "cc");
	return a ^ b ^ c;
#else
	return x * 0x9e3779b97f4a7c15ull;
#endif
}

static int spin(void) {
	int fd = opened("rw", O_RDWR | O_CREAT);
	lseek(fd, 5, SEEK_SET);
	signal(SIGTERM, on_term);
	uint64_t want[64];
	double f = 1, g = 1;
	for (int i = 0; i < 64; i++)
		want[i] = chain(i * 0x123456789abcdefull);
	for (int i = 0; i < 64; i++)
		f = f * 1.0000001 + i;
	printf("ready\n");
	fflush(stdout);
	uint64_t rounds = 0;
	for (; !stop; rounds++) {
		g = 1;
		for (int i = 0; i < 64; i++)
			g = g * 1.0000001 + i;
		if (g != f)
			bad("floating point %g, not %g", g, f);
		for (int i = 0; i < 64; i++)
			if (chain(i * 0x123456789abcdefull) != want[i])
				bad("round %lu: chain %d", (unsigned long)rounds, i);
	}
	if (lseek(fd, 0, SEEK_CUR) != 5)
		bad("offset");
	printf(bads[0] ? "bad%s\n" : "ok\n", bads);
	fflush(stdout);
	return bads[0] ? 1 : 0;
}

// ---- signals

static int nsig;
static atomic_int *got;
static atomic_int total;
static void on_rt(int s, siginfo_t *i, void *c) {
	(void)s, (void)c;
	if (i->si_code == SI_QUEUE && i->si_value.sival_int >= 0 && i->si_value.sival_int < nsig)
		got[i->si_value.sival_int]++;
	total++;
}

static int signals(int n) {
	nsig = n;
	got = calloc(n, sizeof *got);
	int fd = opened("rw", O_RDWR | O_CREAT);
	struct sigaction sa = {.sa_sigaction = on_rt, .sa_flags = SA_SIGINFO | SA_RESTART};
	sigaction(SIGRTMIN, &sa, 0);
	int go[2];
	need(pipe(go), "pipe");
	pid_t me = getpid(), p = fork();
	if (p == 0) {
		char c;
		close(fd);
		if (read(go[0], &c, 1) != 1)
			_exit(1);
		for (int i = 0; i < n; i++)
			while (sigqueue(me, SIGRTMIN, (union sigval){.sival_int = i}) < 0) {
				if (errno != EAGAIN)
					_exit(1);
				usleep(50);
			}
		_exit(0);
	}
	pthread_t t;
	pthread_create(&t, 0, b_spin, 0);
	printf("ready\n");
	fflush(stdout);
	char line[8];
	if (!fgets(line, sizeof line, stdin)) // "go"
		return 1;
	if (write(go[1], "g", 1) != 1)
		die("go");
	int st;
	while (waitpid(p, &st, 0) < 0 && errno == EINTR)
		;
	for (int i = 0; i < 100 && total < n; i++)
		usleep(10000);
	for (int i = 0; i < n; i++)
		if (got[i] != 1)
			bad("signal %d came %d times", i, got[i]);
	if (st != 0 || total != n)
		bad("%d signals, sender %d", total, st);
	if (fcntl(fd, F_GETFD) < 0)
		bad("descriptor");
	printf(bads[0] ? "bad%s\n" : "ok\n", bads);
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) // its end must not come to the tracer, which is its parent
		;
	return bads[0] ? 1 : 0;
}

// ---- storm

static int storm_fd;
static atomic_long forks, threads_made;

static void *brief(void *a) {
	char b[4];
	if (pread(storm_fd, b, 4, 0) != 4 || memcmp(b, page, 4))
		bad("thread reads: %s", strerror(errno));
	threads_made++;
	return a;
}

static void *storm_threads(void *a) {
	while (!stop) {
		pthread_t t[4];
		for (int i = 0; i < 4; i++)
			if (pthread_create(&t[i], 0, brief, 0))
				die("thread");
		for (int i = 0; i < 4; i++)
			pthread_join(t[i], 0);
	}
	return a;
}

static void *storm_forks(void *a) {
	while (!stop) {
		pid_t p = fork();
		if (p < 0) {
			usleep(1000);
			continue;
		}
		if (p == 0) {
			char b[4];
			pid_t q = fork();
			if (q == 0)
				_exit(pread(storm_fd, b, 4, 0) == 4 && !memcmp(b, page, 4) ? 0 : 1);
			int st = 1;
			while (waitpid(q, &st, 0) < 0 && errno == EINTR)
				;
			_exit(st ? 2 : 0);
		}
		int st;
		pid_t r;
		while ((r = waitpid(p, &st, 0)) < 0 && errno == EINTR)
			;
		if (r != p || st != 0)
			bad("child ends with %#x", st);
		forks++;
	}
	return a;
}

static int storm(void) {
	make_file("rw", 1);
	storm_fd = opened("rw", O_RDWR);
	pthread_t t[3];
	pthread_create(&t[0], 0, storm_forks, 0);
	pthread_create(&t[1], 0, storm_forks, 0);
	pthread_create(&t[2], 0, storm_threads, 0);
	int r = serve(0);
	stop = 1;
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], 0);
	if (bads[0]) {
		printf("bad%s\n", bads);
		return 1;
	}
	printf("ok %ld forks, %ld threads\n", forks, threads_made);
	return r;
}

// ---- vfork

static int in_vfork(void) {
	int fd = opened("rw", O_RDWR | O_CREAT);
	lseek(fd, 5, SEEK_SET);
	printf("ready\n");
	fflush(stdout);
	if (vfork() == 0) { // the parent is in uninterruptible sleep until this ends
		char c;
		syscall(SYS_close, fd); // the child has a table of its own, and no object
		while (syscall(SYS_read, 0, &c, 1) == 1 && c != 'q')
			;
		_exit(0);
	}
	if (lseek(fd, 0, SEEK_CUR) != 5)
		bad("offset");
	printf(bads[0] ? "bad%s\n" : "ok\n", bads);
	fflush(stdout);
	return bads[0] ? 1 : 0;
}

// ---- seccomp, inherit

static void check_inherited(void) {
	char b[4] = "";
	if (pread(storm_fd, b, 4, 0) != 4 || memcmp(b, page, 4))
		bad("read: %s", strerror(errno));
	if (lseek(storm_fd, 0, SEEK_CUR) != 9)
		bad("offset");
}

static int inherit(void) {
	storm_fd = 3;
	lseek(3, 9, SEEK_SET);
	return serve(check_inherited);
}

static int in_seccomp(void) {
	make_file("rw", 1);
	storm_fd = opened("rw", O_RDWR);
	lseek(storm_fd, 9, SEEK_SET);
#define KILL(n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, n, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		KILL(SYS_openat), KILL(SYS_socketpair), KILL(SYS_socket), KILL(SYS_mmap), KILL(SYS_recvmsg), KILL(SYS_recvfrom), KILL(SYS_sendto),
		KILL(SYS_dup3), KILL(SYS_close_range), KILL(SYS_fchdir), KILL(SYS_munmap), KILL(SYS_rt_sigprocmask), KILL(SYS_fcntl), KILL(SYS_getpid),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog p = {sizeof f / sizeof *f, f};
	char line[64];
	printf("ready\n");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin)) // stdio has its buffers now
		return 1;
	need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	need(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p), "seccomp");
	return serve(check_inherited);
}

// ---- leaderless

static void *lone(void *a) {
	while (1) { // until the leader is a zombie
		char path[64], b[256] = "";
		snprintf(path, sizeof path, "/proc/%d/stat", getpid());
		int fd = open(path, O_RDONLY);
		if (fd >= 0 && read(fd, b, sizeof b - 1) > 0 && strstr(b, ") Z")) {
			close(fd);
			break;
		}
		close(fd);
		usleep(1000);
	}
	exit(serve(check_inherited));
	return a;
}

static int leaderless(void) {
	make_file("rw", 1);
	storm_fd = opened("rw", O_RDWR);
	lseek(storm_fd, 9, SEEK_SET);
	pthread_t t;
	pthread_create(&t, 0, lone, 0);
	pthread_exit(0);
}

// ---- tables

static atomic_int ask, answered;

static void *own_table(void *a) {
	int fd = opened("rw", O_RDWR);
	need(unshare(CLONE_FILES), "unshare files");
	need(unshare(CLONE_FS), "unshare fs");
	need(chdir("dir"), "chdir");
	lseek(fd, 0, SEEK_SET);
	int own = opened("../own", O_RDWR | O_CREAT); // in no other table
	if (pwrite(own, page, 4096, 0) != 4096)
		die("own");
	lseek(own, 77, SEEK_SET);
	answered = 1;
	for (int seen = 0;;) {
		while (ask == seen)
			usleep(1000);
		seen = ask;
		if (lseek(own, 0, SEEK_CUR) != 77)
			bad("offset in the table of a thread");
		same_bytes(own, 64, "table of a thread");
		int e = open("inside", O_RDWR | O_CREAT, 0644);
		if (e < 0)
			bad("directory of a thread: %s", strerror(errno));
		else
			close(e);
		answered = seen + 1;
	}
	return a;
}

static void check_tables(void) {
	int n = ++ask;
	while (answered != n + 1)
		usleep(1000);
	same_bytes(storm_fd, 32, "table of the process");
	if (access("dir/inside", F_OK))
		bad("directory of the process");
}

static int tables(void) {
	make_file("rw", 1);
	mkdir("dir", 0755);
	storm_fd = opened("rw", O_RDWR);
	pthread_t t;
	pthread_create(&t, 0, own_table, 0);
	while (!answered)
		usleep(1000);
	return serve(check_tables);
}

#include "held.h"

int main(int argc, char **argv) {
	for (int i = 0; i < 4096; i++)
		page[i] = (char)(i * 31 + i / 256);
	if (argc < 3)
		return 2;
	if (getenv("TARGET_NOT_DUMPABLE"))
		need(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE");
	need(chdir(argv[2]), argv[2]);
	if (!strcmp(argv[1], "hold"))
		return hold();
	if (!strcmp(argv[1], "files"))
		return files(atoi(argv[3]), atoi(argv[4]));
	if (!strcmp(argv[1], "spin"))
		return spin();
	if (!strcmp(argv[1], "signals"))
		return signals(atoi(argv[3]));
	if (!strcmp(argv[1], "storm"))
		return storm();
	if (!strcmp(argv[1], "vfork"))
		return in_vfork();
	if (!strcmp(argv[1], "tables"))
		return tables();
	if (!strcmp(argv[1], "seccomp"))
		return in_seccomp();
	if (!strcmp(argv[1], "leaderless"))
		return leaderless();
	if (!strcmp(argv[1], "inherit"))
		return inherit();
	if (!strcmp(argv[1], "held"))
		return held(argv + 3);
	return 2;
}
