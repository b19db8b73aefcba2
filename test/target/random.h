// The model of random.c: what each object must be, and the report when it is not.
// It lies in memory that all processes share; a file's lock is held over each
// operation on the file and the change of its model, so that any difference is
// somebody else's doing.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	page = 4096, max_pages = 12, max_size = max_pages * page,
	max_descs = 5, max_slots = 3, max_maps = 3,
	blocks = 16, block = 128, // ranges for locks
	max_procs = 3, max_threads = 3, files_each = 10, common_files = 4,
	max_files = common_files + max_procs * files_each,
	folders = 4, listed = 150, // entries of the folder "list"
	// descriptors that every process has from its start
	fd_folders = 300, fd_list = 310, fd_common = 320,
	high_numbers = 512, // and above: for dup3
	log_lines = 65536,
};

struct mapping {
	char *at; // 0: none
	int proc, private, writable; // writable: mprotect may make it so
	int first, n;                // pages of the file
	struct { uint8_t present, prot, locked, own; } p[max_pages];
	uint8_t own[max_pages][page]; // of a private map, where it was written to
};

struct desc {
	int live;
	int fd[max_slots]; // -1: none
	uint8_t cloexec[max_slots];
	int flags; // F_GETFL
	off_t off;
	int owner, sig; // F_SETOWN, F_SETSIG
	int flocked;    // 0, LOCK_SH, LOCK_EX
	uint8_t ofd[blocks]; // F_UNLCK is not 0: 0, 1 read, 2 write
};

struct file {
	pthread_mutex_t lock;
	int number, common, live, linkable;
	int folder, folder2;
	char name[24], name2[24]; // "": none
	ino_t ino;
	off_t size;
	unsigned version;
	uint8_t data[max_size]; // zeros beyond size
	struct desc d[max_descs];
	struct mapping m[max_maps];
	uint8_t posix[blocks];
};

// A folder's descriptor with a position in it.
struct listing {
	pthread_mutex_t lock;
	int fd; // -1: none
	uint8_t seen[listed];
	int count;
	off_t kept; // a position of before, and what came after it
	int next;
};

struct shared {
	atomic_int stop, bad, bad_file;
	char text[600];
	atomic_long steps, progress[max_procs * max_threads];
	struct { atomic_long at; char text[200]; } log[log_lines];
	struct file f[max_files];
	struct listing l[max_procs];
	struct { pthread_rwlock_t lock; int folder; } cwd[max_procs];
	ino_t folder_ino[folders];
};

static struct shared *sh;
static uint64_t seed;
static int proc, description_locks = 1, memory_maps = 1, change_append = 1;
static __thread int thread;
static __thread uint64_t state;
static __thread long step_no;
static __thread struct file *busy; // what a signal is about
static __thread uint8_t *aligned;
static __thread int pipes[2];

static uint64_t mix(uint64_t x) {
	x += 0x9e3779b97f4a7c15;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static unsigned any(unsigned n) { return (state = mix(state)) % n; }

static double seconds(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

// step notes what is about to be done.
static void step(struct file *f, const char *fmt, ...) {
	char b[100];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(b, sizeof b, fmt, ap);
	va_end(ap);
	busy = f;
	step_no++;
	long n = atomic_fetch_add(&sh->steps, 1);
	atomic_store(&sh->progress[proc * max_threads + thread], step_no);
	snprintf(sh->log[n % log_lines].text, sizeof sh->log[0].text, "%.6f process %d thread %d step %ld file %d: %s", seconds(), proc, thread, step_no, f ? f->number : -1, b);
	atomic_store(&sh->log[n % log_lines].at, n);
}

// bad reports the first difference; this thread goes on with nothing.
static _Noreturn void bad(const char *fmt, ...) {
	char b[400];
	int e = errno;
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(b, sizeof b, fmt, ap);
	va_end(ap);
	if (atomic_fetch_add(&sh->bad, 1) == 0) {
		atomic_store(&sh->bad_file, busy ? busy->number : -1);
		snprintf(sh->text, sizeof sh->text, "seed %llu step %ld object %d (process %d, thread %d, at %.6f): %s (errno %s)",
			(unsigned long long)seed, step_no, busy ? busy->number : -1, proc, thread, seconds(), b, strerrorname_np(e) ? strerrorname_np(e) : "?");
	}
	while (!atomic_load(&sh->stop))
		usleep(10000);
	_exit(1);
}

static void on_fault(int sig, siginfo_t *i, void *c) {
	(void)c;
	bad("signal %d, code %d, address %p", sig, i->si_code, i->si_addr);
}

// last_actions writes what was done last, oldest first: all of the last n, and of those
// before the ones that were about the object that is bad.
static void last_actions(FILE *to, int n) {
	long end = atomic_load(&sh->steps), from = end > log_lines ? end - log_lines : 0;
	char about[20];
	if (atomic_load(&sh->bad_file) < 0 && from < end - 3000)
		from = end - 3000; // directories: all are about them
	snprintf(about, sizeof about, "file %d:", atomic_load(&sh->bad_file));
	for (long i = from; i < end; i++)
		if (atomic_load(&sh->log[i % log_lines].at) == i && (i >= end - n || strstr(sh->log[i % log_lines].text, about)))
			fprintf(to, "%s\n", sh->log[i % log_lines].text);
}

static int reads(const struct desc *d) { return !(d->flags & O_PATH) && (d->flags & O_ACCMODE) != O_WRONLY; }
static int writes(const struct desc *d) { return !(d->flags & O_PATH) && (d->flags & O_ACCMODE) != O_RDONLY; }

// a_slot is a descriptor number of a description.
static int a_slot(const struct desc *d) {
	for (int i = any(max_slots);; i = (i + 1) % max_slots)
		if (d->fd[i] >= 0)
			return i;
}

// a_desc is an open description that is good for something, or null.
static struct desc *a_desc(struct file *f, int (*good)(const struct desc *)) {
	int from = any(max_descs);
	for (int i = 0; i < max_descs; i++) {
		struct desc *d = &f->d[(from + i) % max_descs];
		if (d->live && (!good || good(d)))
			return d;
	}
	return 0;
}

static void in_child(int ok, int line) {
	if (!ok)
		_exit(line % 200 + 1);
}

// child_ends waits for a child of fork, which must be content.
static void child_ends(pid_t p, const char *what) {
	int st;
	if (waitpid(p, &st, 0) != p)
		bad("%s: waitpid", what);
	if (st)
		bad("%s: the child ends with %#x", what, st);
}

static pid_t a_child(void) {
	pid_t p;
	while ((p = fork()) < 0 && errno == EAGAIN)
		usleep(1000);
	if (p < 0)
		bad("fork");
	return p;
}

// same_bytes compares what was read with the model.
static void same_bytes(struct file *f, const uint8_t *b, off_t at, size_t n, const char *what) {
	for (size_t i = 0; i < n; i++)
		if (b[i] != f->data[at + i])
			bad("%s: byte %ld of %ld is %#x, not %#x", what, (long)at + (long)i, (long)f->size, b[i], f->data[at + i]);
}

static void new_bytes(struct file *f, uint8_t *b, off_t at, size_t n) {
	f->version++;
	for (size_t i = 0; i < n; i++)
		b[i] = mix((uint64_t)f->number << 40 ^ (uint64_t)f->version << 20 ^ (uint64_t)(at + i));
}

// written puts into the model what was written at an offset.
static void written(struct file *f, const uint8_t *b, off_t at, size_t n) {
	memcpy(f->data + at, b, n);
	if (at + (off_t)n > f->size)
		f->size = at + n;
}
