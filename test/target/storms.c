// storms makes processes and threads without end, in every way there is, each of
// which looks at files that were open before it began. It is what tests swap
// files in while nothing stands still.
//
//   storms exec DIR N   N processes that call execve on themselves, from the
//                       leader, from other threads, after the leader's end, and
//                       after a fork whose parent ends
//   storms clone DIR N  N threads that make processes by fork, vfork and clone
//                       with any mix of shared tables, directories and memory, and
//                       threads with tables of their own
//
// Like target it prints "ready" and answers each line of stdin with "ok" or "bad …";
// "quit" ends it. The answer of "quit" names how many processes there were.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

// shared is common to all processes: a memfd, which execve does not take away.
struct shared {
	atomic_int stop;
	atomic_long born, execs;
	atomic_int bad;
	char text[4000];
};

static struct shared *sh;

// Numbers that all processes have.
enum { fd_shared = 20, fd_file = 21, fd_dir = 22, fd_cloexec = 23 };
enum { offset = 9, file_size = 8192 };

static char want[file_size];

static void bad(const char *fmt, ...) {
	char b[512];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(b, sizeof b, fmt, ap);
	va_end(ap);
	if (atomic_fetch_add(&sh->bad, 1) == 0)
		snprintf(sh->text, sizeof sh->text, "process %d: %s", getpid(), b);
}

static void die(const char *what) {
	printf("bad: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(2);
}

static void same_bytes(int fd, const char *what) {
	char b[64];
	off_t at = (getpid() * 64) % (file_size - sizeof b);
	ssize_t n = pread(fd, b, sizeof b, at);
	if (n != sizeof b || memcmp(b, want + at, sizeof b))
		bad("%s: read %zd: %s", what, n, n < 0 ? strerror(errno) : "other bytes");
}

// look checks what every process has from its start, and what it finds by name.
static void look(const char *what) {
	same_bytes(fd_file, what);
	off_t o = lseek(fd_file, 0, SEEK_CUR);
	if (o != offset)
		bad("%s: offset %ld: %s", what, (long)o, strerror(errno));
	if (fcntl(fd_file, F_GETFD) != 0)
		bad("%s: close-on-exec appeared", what);
	int fd = openat(fd_dir, "rw", O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		bad("%s: openat: %s", what, strerror(errno));
		return;
	}
	same_bytes(fd, "a file opened from a directory");
	char *m = mmap(0, file_size, PROT_READ, MAP_SHARED, fd, 0);
	if (m == MAP_FAILED)
		bad("%s: mmap: %s", what, strerror(errno));
	else if (memcmp(m, want, file_size))
		bad("%s: map differs", what);
	close(fd); // the map stays, to be swapped or to end with us
	fd = open("rw", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		bad("%s: open in the working directory: %s", what, strerror(errno));
	else
		same_bytes(fd, "a file opened in the working directory");
	if (m != MAP_FAILED && getpid() % 2)
		munmap(m, file_size);
}

static void *sleeper(void *a) {
	while (1)
		pause();
	return a;
}

static void *spinner(void *a) {
	for (volatile unsigned long i = 0;; i++)
		if (i % 4096 == 0)
			usleep(500);
	return a;
}

static void start(void *(*f)(void *), void *arg) {
	pthread_t t;
	pthread_attr_t a;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 65536);
	pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
	int e;
	while ((e = pthread_create(&t, &a, f, arg)) == EAGAIN && !atomic_load(&sh->stop))
		usleep(1000); // there are too many of us
	if (e && atomic_load(&sh->stop))
		_exit(0);
	if (e)
		bad("thread: %s", strerror(e));
}

// ---- exec

static char *program, *dir_name;
static unsigned round_no;

static _Noreturn void again(void) {
	char n[16];
	if (atomic_load(&sh->stop))
		_exit(0);
	snprintf(n, sizeof n, "%u", round_no + 1);
	atomic_fetch_add(&sh->execs, 1);
	execl(program, program, "again", dir_name, n, (char *)0); // not /proc/self/exe: a leader that ended has none
	if (!atomic_load(&sh->stop))
		bad("execve: %s", strerror(errno));
	_exit(1);
}

static void *again_elsewhere(void *a) {
	again(); // this thread gets the leader's number (de_thread, fs/exec.c)
	return a;
}

static void *again_alone(void *a) {
	char path[64], b[256];
	for (int i = 0; i < 1000; i++) { // until the leader is a zombie
		snprintf(path, sizeof path, "/proc/%d/stat", getpid());
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? -1 : read(fd, b, sizeof b - 1);
		close(fd);
		if (n > 0 && (b[n] = 0, strstr(b, ") Z")))
			break;
		usleep(200);
	}
	look("after the leader's end");
	again();
	return a;
}

static int storm_again(void) {
	if (fcntl(fd_cloexec, F_GETFD) != -1)
		bad("a close-on-exec descriptor outlived execve");
	if (fcntl(fd_cloexec + 1, F_GETFD) != -1)
		bad("descriptor %d appeared", fd_cloexec + 1);
	look("after execve");
	int extra = openat(fd_dir, "rw", O_RDWR | O_CLOEXEC);
	if (extra < 0 || dup3(extra, fd_cloexec, O_CLOEXEC) < 0)
		bad("open: %s", strerror(errno));
	close(extra);
	switch ((round_no + getpid()) % 6) {
	case 0:
		again();
	case 1: // others run or sleep while the leader calls execve
		start(sleeper, 0);
		start(spinner, 0);
		again();
	case 2:
		start(sleeper, 0);
		start(again_elsewhere, 0);
		sleeper(0);
		break;
	case 3:
		start(spinner, 0);
		start(again_alone, 0);
		pthread_exit(0);
	case 4: { // the child goes on; the parent ends
		pid_t p = fork();
		if (p < 0)
			again();
		if (p > 0)
			_exit(0);
		atomic_fetch_add(&sh->born, 1);
		again();
	}
	default: {
		pid_t p = vfork();
		if (p == 0) {
			execl(program, program, "once", dir_name, (char *)0);
			_exit(3);
		}
		int st = 0;
		while (p > 0 && waitpid(p, &st, 0) < 0 && errno == EINTR)
			;
		if (st)
			bad("a child of vfork ends with %#x", st);
		atomic_fetch_add(&sh->born, 1);
		again();
	}
	}
	return 1;
}

// ---- clone

static int in_clone(void *a) {
	(void)a;
	char b[64];
	off_t at = 128;
	// no more than system calls: memory may be shared with the parent
	if (syscall(SYS_pread64, fd_file, b, sizeof b, at) != sizeof b)
		syscall(SYS_exit, 4);
	for (unsigned i = 0; i < sizeof b; i++)
		if (b[i] != want[at + i])
			syscall(SYS_exit, 5);
	if (syscall(SYS_lseek, fd_file, 0, SEEK_CUR) != offset)
		syscall(SYS_exit, 6);
	int fd = syscall(SYS_openat, fd_dir, "rw", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		syscall(SYS_exit, 7);
	syscall(SYS_close, fd);
	syscall(SYS_exit, 0);
	return 0;
}

static void *own_table(void *a) {
	if (unshare(CLONE_FILES | CLONE_FS))
		bad("unshare: %s", strerror(errno));
	look("thread with its own table");
	return a;
}

static void *cloner(void *a) {
	static const int kinds[] = {
		SIGCHLD, CLONE_FILES | SIGCHLD, CLONE_FS | SIGCHLD, CLONE_FILES | CLONE_FS | SIGCHLD,
		CLONE_VM | CLONE_VFORK | SIGCHLD, CLONE_VM | CLONE_FILES | SIGCHLD, CLONE_VM | CLONE_FILES | CLONE_FS | SIGCHLD, CLONE_VM | SIGCHLD,
	};
	unsigned n = (unsigned)(long)a * 3;
	char *stack = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	while (!atomic_load(&sh->stop)) {
		if (n++ % 9 == 8) {
			pthread_t t;
			if (!pthread_create(&t, 0, own_table, 0))
				pthread_join(t, 0);
			atomic_fetch_add(&sh->born, 1);
			continue;
		}
		int kind = kinds[n % (sizeof kinds / sizeof *kinds)], st = 0;
		pid_t p = clone(in_clone, stack + 65536, kind, 0), r;
		if (p < 0) {
			if (errno != EAGAIN)
				bad("clone(%#x): %s", kind, strerror(errno));
			usleep(1000);
			continue;
		}
		while ((r = waitpid(p, &st, 0)) < 0 && errno == EINTR)
			;
		if (r != p || st)
			bad("a process of clone(%#x) ends with %#x: %s", kind, st, r < 0 ? strerror(errno) : "");
		atomic_fetch_add(&sh->born, 1);
	}
	return 0;
}

// ---- both

static void move_to(int fd, int number, int flags) {
	if (fd < 0 || dup3(fd, number, flags) < 0)
		die("open");
	close(fd);
}

static void share(int fd) {
	sh = mmap(0, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (sh == MAP_FAILED)
		_exit(9);
}

int main(int argc, char **argv) {
	for (int i = 0; i < file_size; i++)
		want[i] = (char)(i * 31 + i / 256);
	if (argc < 3)
		return 2;
	program = argv[0];
	dir_name = argv[2];
	if (!strcmp(argv[1], "again") || !strcmp(argv[1], "once")) {
		share(fd_shared);
		if (!strcmp(argv[1], "once")) {
			look("in a child of vfork");
			return 0;
		}
		round_no = strtoul(argv[3], 0, 10);
		return storm_again();
	}
	if (chdir(dir_name))
		die(dir_name);
	move_to(memfd_create("storms", 0), fd_shared, 0);
	if (ftruncate(fd_shared, sizeof *sh))
		die("memfd");
	share(fd_shared);
	move_to(open("rw", O_RDWR | O_CREAT | O_TRUNC, 0644), fd_file, 0);
	if (write(fd_file, want, file_size) != file_size || lseek(fd_file, offset, SEEK_SET) != offset)
		die("write");
	move_to(open(".", O_RDONLY | O_DIRECTORY), fd_dir, 0);
	int n = argc > 3 ? atoi(argv[3]) : 3, exec = !strcmp(argv[1], "exec");
	if (prctl(PR_SET_CHILD_SUBREAPER, 1))
		die("subreaper");
	if (exec)
		for (int i = 0; i < n; i++)
			if (fork() == 0) {
				move_to(open("/dev/null", O_RDONLY), 0, 0);
				round_no = i;
				again();
			}
	pthread_t t[64];
	for (int i = 0; !exec && i < n && i < 64; i++)
		if (pthread_create(&t[i], 0, cloner, (void *)(long)i))
			die("thread");
	printf("ready\n");
	fflush(stdout);
	char line[64];
	while (fgets(line, sizeof line, stdin)) {
		int quit = !strncmp(line, "quit", 4), st;
		pid_t p;
		if (quit) {
			atomic_store(&sh->stop, 1);
			for (int i = 0; !exec && i < n && i < 64; i++)
				pthread_join(t[i], 0);
		}
		// those of exec come to us when their parents end
		while (exec && (p = waitpid(-1, &st, quit ? 0 : WNOHANG)) > 0)
			if (st)
				bad("process %d ends with %#x", p, st);
		look("the first process");
		if (sh->bad)
			printf("bad: %d times; %s\n", sh->bad, sh->text);
		else
			printf("ok %ld processes, %ld execs\n", sh->born, sh->execs);
		fflush(stdout);
		if (quit)
			break;
	}
	atomic_store(&sh->stop, 1);
	return sh->bad ? 1 : 0;
}
