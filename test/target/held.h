// The part of target that has the kernel hold files for it beside its
// descriptors. Each WHAT is one of
//
//   file       a plain descriptor of "plain"
//   flight     "flight" twice and a socket whose queue has "nested", sent over a stream socket behind some bytes
//   second     the same file in the second datagram of a queue
//   unaccepted "flight" sent over a connection that nobody has accepted
//   ring       "ring" and "ring gone" as fixed files of an io_uring, one with a blank, one unlinked
//   sqpoll     the same with a thread of the kernel that polls
//   worker     an io_uring with a worker thread that is stuck in a read of a pipe
//   lostring   "ring" in an io_uring without a descriptor
//   aio        a context of io_setup
//   inotify    watches on "watched" and "."
//   fanotify   marks on "watched" and on the mount
//   epoll      an entry for the first descriptor (of a FIFO, if the file cannot be polled)
//   peeker     "flight" in a queue of which the first byte was peeked at, with SO_PEEK_OFF
//   busy       its first thread computes, another one answers
//   lease      a read lease on "lease"
//
// The line "take" has it receive what is in flight and check it.
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>

static int queue[2], datagrams[2], ring = -1, plain = -1, ready_fifo = -1, polls = -1;

static int page_file(const char *name) {
	make_file(name, 1);
	return opened(name, O_RDWR);
}

static void send_fds(int s, const int *fd, int n, const char *text) {
	char control[CMSG_SPACE(16 * sizeof(int))] = "";
	struct iovec v = {(void *)text, strlen(text)};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
	if (n) {
		m.msg_control = control;
		m.msg_controllen = CMSG_SPACE(n * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fd, n * sizeof(int));
	}
	need(sendmsg(s, &m, 0), "sendmsg");
}

// take_fds receives one message; its text must be want.
static int take_fds(int s, int *fd, const char *want) {
	char control[CMSG_SPACE(16 * sizeof(int))] = "", text[64] = "";
	struct iovec v = {text, strlen(want)};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	if (recvmsg(s, &m, MSG_DONTWAIT) < 0 || strcmp(text, want)) {
		bad("received %s, not %s", text, want);
		return 0;
	}
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	if (!c)
		return 0;
	int n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	memcpy(fd, CMSG_DATA(c), n * sizeof(int));
	return n;
}

static void flight(void) {
	need(socketpair(AF_UNIX, SOCK_STREAM, 0, queue), "socketpair");
	int inner[2];
	need(socketpair(AF_UNIX, SOCK_DGRAM, 0, inner), "socketpair");
	int nested = page_file("nested"), f = page_file("flight");
	send_fds(inner[0], &nested, 1, "nested");
	send_fds(queue[0], 0, 0, "some bytes");
	int all[] = {f, f, inner[1]};
	send_fds(queue[0], all, 3, "three");
	close(nested), close(f), close(inner[1]), close(inner[0]);
}

static void check_flight(void) {
	int fd[16], n;
	take_fds(queue[1], fd, "some bytes");
	if ((n = take_fds(queue[1], fd, "three")) != 3) {
		bad("%d descriptors arrived", n);
		return;
	}
	same_bytes(fd[0], 64, "in flight");
	same_bytes(fd[1], 64, "in flight");
	int in;
	if (take_fds(fd[2], &in, "nested") != 1)
		bad("nothing in the inner queue");
	else
		same_bytes(in, 64, "in flight, nested");
}

static void second(void) {
	need(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams), "socketpair");
	int f = page_file("flight");
	send_fds(datagrams[0], 0, 0, "first");
	send_fds(datagrams[0], &f, 1, "second");
	close(f);
}

static void unaccepted(void) {
	int l = need(socket(AF_UNIX, SOCK_STREAM, 0), "socket"), c = need(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	socklen_t n = sizeof sa;
	need(bind(l, (void *)&sa, sizeof(sa_family_t)), "bind");
	need(listen(l, 5), "listen");
	need(getsockname(l, (void *)&sa, &n), "getsockname");
	need(connect(c, (void *)&sa, n), "connect");
	int f = page_file("flight");
	send_fds(c, &f, 1, "knock");
	close(f);
}

static int peeker[2] = {-1, -1};

static void start_peeker(void) {
	int zero = 0;
	char c;
	need(socketpair(AF_UNIX, SOCK_STREAM, 0, peeker), "socketpair");
	int f = page_file("flight");
	send_fds(peeker[0], 0, 0, "abc");
	send_fds(peeker[0], &f, 1, "d");
	close(f);
	need(setsockopt(peeker[1], SOL_SOCKET, SO_PEEK_OFF, &zero, sizeof zero), "SO_PEEK_OFF");
	need(recv(peeker[1], &c, 1, MSG_PEEK), "peek");
}

static struct io_uring_params ring_params;
static void *ring_at, *ring_sqes;

static int make_ring(unsigned flags) {
	memset(&ring_params, 0, sizeof ring_params);
	ring_params.flags = flags;
	ring_params.sq_thread_idle = 100000;
	int r = need(syscall(SYS_io_uring_setup, 8, &ring_params), "io_uring_setup");
	ring_at = mmap(0, ring_params.cq_off.cqes + ring_params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED, r, IORING_OFF_SQ_RING);
	ring_sqes = mmap(0, ring_params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, r, IORING_OFF_SQES);
	if (ring_at == MAP_FAILED || ring_sqes == MAP_FAILED)
		die("mmap of the ring");
	return r;
}

// submit gives one request to the ring and returns at once.
static void submit(struct io_uring_sqe q) {
	char *at = ring_at;
	unsigned *tail = (void *)(at + ring_params.sq_off.tail), *array = (void *)(at + ring_params.sq_off.array);
	unsigned i = *tail & *(unsigned *)(at + ring_params.sq_off.ring_mask);
	((struct io_uring_sqe *)ring_sqes)[i] = q;
	array[i] = i;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	need(syscall(SYS_io_uring_enter, ring, 1, 0, IORING_ENTER_SQ_WAKEUP, 0, 0), "io_uring_enter");
}

static void fixed_files(unsigned flags) {
	ring = make_ring(flags);
	int a = page_file("ri ng"), b = page_file("ring\\gone");
	unlink("ring\\gone");
	int all[] = {a, -1, b, queue[1]};
	need(syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, all, 3), "IORING_REGISTER_FILES");
	close(a), close(b);
}

// check_ring reads through a fixed file.
static void check_ring(void) {
	char b[64] = "";
	char *at = ring_at;
	unsigned *head = (void *)(at + ring_params.cq_off.head), *tail = (void *)(at + ring_params.cq_off.tail);
	submit((struct io_uring_sqe){.opcode = IORING_OP_READ, .flags = IOSQE_FIXED_FILE, .fd = 0, .off = 64, .addr = (uintptr_t)b, .len = 64});
	for (int i = 0; i < 10000 && __atomic_load_n(tail, __ATOMIC_ACQUIRE) == *head; i++)
		usleep(1000);
	struct io_uring_cqe *c = (void *)(at + ring_params.cq_off.cqes);
	c += *head & *(unsigned *)(at + ring_params.cq_off.ring_mask);
	if (__atomic_load_n(tail, __ATOMIC_ACQUIRE) == *head)
		bad("the ring does not answer");
	else if (c->res != 64 || memcmp(b, page + 64, 64))
		bad("read through the ring: %d", c->res);
	else
		__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
}

// a worker thread of the kernel that waits for a pipe
static void worker(void) {
	static char c;
	int p[2];
	need(pipe(p), "pipe");
	ring = make_ring(0);
	submit((struct io_uring_sqe){.opcode = IORING_OP_READ, .flags = IOSQE_ASYNC, .fd = p[0], .off = -1, .addr = (uintptr_t)&c, .len = 1});
	usleep(50000);
}

static int holds(char **what, const char *w) {
	for (; *what; what++)
		if (!strcmp(*what, w))
			return 1;
	return 0;
}

static char **held_what;

static void check_held(void) {
	if (plain >= 0)
		same_bytes(plain, 64, "plain");
	if (holds(held_what, "ring") || holds(held_what, "sqpoll"))
		check_ring();
	if (peeker[1] >= 0) {
		char c = 0;
		int one = 1;
		if (recv(peeker[1], &c, 1, MSG_PEEK | MSG_DONTWAIT) != 1 || c != 'b')
			bad("peeked at %c", c);
		need(setsockopt(peeker[1], SOL_SOCKET, SO_PEEK_OFF, &one, sizeof one), "SO_PEEK_OFF");
	}
	if (ready_fifo >= 0) {
		struct epoll_event e;
		if (write(ready_fifo, "x", 1) != 1 || epoll_wait(polls, &e, 1, 10000) != 1 || e.data.u32 != 4711)
			bad("epoll does not see the FIFO");
		char c;
		if (read(ready_fifo, &c, 1) != 1 || epoll_wait(polls, &e, 1, 0) != 0)
			bad("epoll sees too much");
	}
}

static void *answer(void *a) {
	(void)a;
	exit(serve(check_held));
}

static int held(char **what) {
	held_what = what;
	if (holds(what, "file"))
		plain = page_file("plain");
	if (holds(what, "flight"))
		flight();
	if (holds(what, "second"))
		second();
	if (holds(what, "unaccepted"))
		unaccepted();
	if (holds(what, "ring") || holds(what, "lostring"))
		fixed_files(0);
	if (holds(what, "lostring"))
		close(ring);
	if (holds(what, "sqpoll"))
		fixed_files(IORING_SETUP_SQPOLL);
	if (holds(what, "worker"))
		worker();
	if (holds(what, "aio")) {
		static aio_context_t ctx;
		need(syscall(SYS_io_setup, 16, &ctx), "io_setup");
	}
	if (holds(what, "inotify")) {
		int i = need(inotify_init1(IN_NONBLOCK), "inotify");
		close(page_file("watched"));
		need(inotify_add_watch(i, "watched", IN_ALL_EVENTS), "watch");
		need(inotify_add_watch(i, ".", IN_ALL_EVENTS), "watch");
	}
	if (holds(what, "fanotify")) {
		int f = need(fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY), "fanotify");
		close(page_file("watched"));
		need(fanotify_mark(f, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, "watched"), "mark");
		need(fanotify_mark(f, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_OPEN, AT_FDCWD, "."), "mark of the mount");
	}
	if (holds(what, "epoll")) {
		mkfifo("fifo", 0644);
		ready_fifo = opened("fifo", O_RDWR);
		polls = need(epoll_create1(0), "epoll");
		struct epoll_event ev = {.events = EPOLLIN, .data.u32 = 4711};
		need(epoll_ctl(polls, EPOLL_CTL_ADD, ready_fifo, &ev), "epoll_ctl");
	}
	if (holds(what, "lease")) {
		close(page_file("lease"));
		need(fcntl(opened("lease", O_RDONLY), F_SETLEASE, F_RDLCK), "F_SETLEASE");
	}
	if (holds(what, "peeker"))
		start_peeker();
	if (plain < 0)
		need(chdir("/"), "/"); // nothing but what the kernel holds
	if (holds(what, "busy")) {
		pthread_t t;
		pthread_create(&t, 0, answer, 0);
		for (volatile uint64_t i = 0;; i++)
			;
	}
	return serve(check_held);
}
