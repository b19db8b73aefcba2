// Random locks: POSIX locks of the process, locks of open descriptions, flock.
// A lock's kind is 0 (none), 1 (read), 2 (write).

static const int lock_types[] = {F_UNLCK, F_RDLCK, F_WRLCK};

static int conflicts(int a, int b) { return a && b && (a == 2 || b == 2); }

// in_the_way: somebody else than d has such a lock (null: than the process).
static int in_the_way(struct file *f, struct desc *d, int from, int to, int kind) {
	for (int b = from; b < to; b++) {
		if (d && conflicts(kind, f->posix[b]))
			return 1;
		for (int i = 0; i < max_descs; i++)
			if (f->d[i].live && &f->d[i] != d && conflicts(kind, f->d[i].ofd[b]))
				return 1;
	}
	return 0;
}

// lock_range sets a POSIX lock, or one of the description.
static void lock_range(struct file *f, struct desc *d, int ofd) {
	int from = any(blocks), to = from + 1 + any(blocks - from), kind = any(3), fd = d->fd[a_slot(d)];
	if ((kind == 1 && !reads(d)) || (kind == 2 && !writes(d)))
		return;
	struct flock l = {.l_type = lock_types[kind], .l_whence = SEEK_SET, .l_start = from * block, .l_len = (to - from) * block};
	step(f, "%s %d kind %d blocks %d to %d", ofd ? "F_OFD_SETLK" : "F_SETLK", fd, kind, from, to);
	int fails = in_the_way(f, ofd ? d : 0, from, to, kind);
	int r = fcntl(fd, ofd ? F_OFD_SETLK : F_SETLK, &l);
	if (fails ? (r != -1 || (errno != EAGAIN && errno != EACCES)) : r != 0)
		bad("lock of kind %d on blocks %d to %d: %d, should %s", kind, from, to, r, fails ? "fail" : "succeed");
	if (!fails)
		memset((ofd ? d->ofd : f->posix) + from, kind, to - from);
}

static void lock_whole(struct file *f, struct desc *d) {
	static const int ops[] = {LOCK_UN, LOCK_SH, LOCK_EX};
	int kind = ops[any(3)], fd = d->fd[a_slot(d)], fails = 0;
	for (int i = 0; i < max_descs; i++)
		if (f->d[i].live && &f->d[i] != d && f->d[i].flocked && kind != LOCK_UN && (kind == LOCK_EX || f->d[i].flocked == LOCK_EX))
			fails = 1;
	step(f, "flock %d %d", fd, kind);
	int r = flock(fd, kind | LOCK_NB);
	if (fails ? (r != -1 || errno != EWOULDBLOCK) : r != 0)
		bad("flock %d: %d, should %s", kind, r, fails ? "fail" : "succeed");
	// a lock that cannot be converted is lost (flock(2))
	d->flocked = fails ? 0 : kind == LOCK_UN ? 0 : kind;
}

// drop_locks is done before the last close: a map, or the child of another thread,
// may have the description longer than we.
static void drop_locks(struct file *f, struct desc *d, int fd) {
	(void)f;
	int some = 0;
	for (int b = 0; b < blocks; b++)
		some |= d->ofd[b];
	struct flock l = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
	if (some && fcntl(fd, F_OFD_SETLK, &l))
		bad("F_OFD_SETLK: unlock");
	if (d->flocked && flock(fd, LOCK_UN))
		bad("flock: unlock");
	memset(d->ofd, 0, sizeof d->ofd);
	d->flocked = 0;
}

// check_locks has a child ask for locks, which is in the way of all.
static void check_locks(struct file *f, struct desc *d) {
	int fd = d->fd[a_slot(d)];
	int ask[4], nap = any(4) ? 0 : any(2000);
	for (int i = 0; i < 4; i++)
		ask[i] = any(blocks);
	step(f, "a child asks for locks of %d, blocks %d %d %d %d", fd, ask[0], ask[1], ask[2], ask[3]);
	pid_t p = a_child();
	if (p == 0) {
		usleep(nap);
		for (int i = 0; i < 4; i++) {
			int kind = 1 + i % 2, fails = conflicts(kind, f->posix[ask[i]]) || in_the_way(f, 0, ask[i], ask[i] + 1, kind);
			struct flock l = {.l_type = lock_types[kind], .l_whence = SEEK_SET, .l_start = ask[i] * block, .l_len = block};
			in_child(fcntl(fd, F_GETLK, &l) == 0, __LINE__);
			in_child((l.l_type != F_UNLCK) == fails, fails ? 100 : 101);
		}
		int any_lock = 0, exclusive = 0;
		for (int i = 0; i < max_descs; i++)
			if (f->d[i].live && f->d[i].flocked)
				any_lock = 1, exclusive |= f->d[i].flocked == LOCK_EX;
		char path[32];
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		int other = open(path, O_RDONLY | O_CLOEXEC);
		in_child(other >= 0, __LINE__);
		int r = flock(other, LOCK_EX | LOCK_NB);
		in_child(any_lock ? r == -1 && errno == EWOULDBLOCK : r == 0, any_lock ? 102 : 103);
		r = flock(other, LOCK_SH | LOCK_NB);
		in_child(exclusive ? r == -1 && errno == EWOULDBLOCK : r == 0, exclusive ? 104 : 105);
		in_child(flock(other, LOCK_UN) == 0, __LINE__); // FUSE does not wait for the release at a close
		_exit(0);
	}
	child_ends(p, "a child that asks for locks (0x6500: a POSIX or OFD lock is not there, 0x6600: one is too much, 0x6700, 0x6900: flock is not there, 0x6800, 0x6a00: too much)");
}
