// Random reads, writes and sizes of files.

static size_t expect(const struct file *f, off_t at, size_t n) {
	if (at >= f->size)
		return 0;
	return at + (off_t)n > f->size ? (size_t)(f->size - at) : n;
}

static void move_to(struct file *f, struct desc *d, int fd, off_t at) {
	(void)f;
	if (lseek(fd, at, SEEK_SET) != at)
		bad("lseek to %ld", (long)at);
	d->off = at;
}

static void read_some(struct file *f, struct desc *d, int positioned) {
	int s = a_slot(d), fd = d->fd[s];
	off_t at = any(max_size);
	size_t n = 1 + any(9000);
	if (d->flags & O_DIRECT)
		at &= ~(page - 1), n = page * (1 + any(3));
	step(f, "%s %d at %ld size %zu", positioned ? "pread" : "read", fd, positioned ? (long)at : (long)d->off, n);
	if (!positioned) {
		if (d->flags & O_DIRECT && d->off % page)
			move_to(f, d, fd, at);
		at = d->off;
	}
	ssize_t got = positioned ? pread(fd, aligned, n, at) : read(fd, aligned, n);
	if (got != (ssize_t)expect(f, at, n))
		bad("read of %zu bytes at %ld of %ld: %zd", n, (long)at, (long)f->size, got);
	same_bytes(f, aligned, at, got, "read");
	if (!positioned)
		d->off += got;
}

static void write_some(struct file *f, struct desc *d, int positioned) {
	int s = a_slot(d), fd = d->fd[s], append = d->flags & O_APPEND;
	off_t at = any(max_size);
	size_t n = 1 + any(9000);
	if (d->flags & O_DIRECT) {
		at &= ~(page - 1), n = page * (1 + any(3));
		if (append && f->size % page)
			return;
	}
	step(f, "%s %d at %ld size %zu", positioned ? "pwrite" : "write", fd, positioned ? (long)at : (long)d->off, n);
	if (!positioned && (d->off >= max_size || (d->flags & O_DIRECT && d->off % page)))
		move_to(f, d, fd, at);
	off_t to = append ? f->size : positioned ? at : d->off;
	if (to + n > max_size)
		n = max_size - to;
	if (n == 0)
		return;
	new_bytes(f, aligned, to, n);
	ssize_t got = positioned ? pwrite(fd, aligned, n, at) : write(fd, aligned, n);
	if (got != (ssize_t)n)
		bad("write of %zu bytes at %ld of %ld: %zd", n, (long)to, (long)f->size, got);
	written(f, aligned, to, n);
	if (positioned)
		return;
	d->off = to + n;
	// The kernel adds to the size that it knows of. While a layer moves files for a new rule a
	// file has two inodes, of which one may not know of a change through the other.
	if (append)
		move_to(f, d, fd, d->off);
}

static void seek_some(struct file *f, struct desc *d) {
	int fd = d->fd[a_slot(d)], whence = any(3);
	off_t to = any(max_size), by = whence == SEEK_SET ? to : whence == SEEK_CUR ? to - d->off : to - f->size;
	step(f, "lseek %d to %ld, whence %d", fd, (long)to, whence);
	off_t got = lseek(fd, by, whence);
	if (got != to)
		bad("lseek(%ld, %d) to %ld: %ld", (long)by, whence, (long)to, (long)got);
	d->off = to;
}

// resize does not cut pages that are mapped: there is SIGBUS.
static void resize(struct file *f, struct desc *d) {
	off_t to = any(max_size), least = 0;
	for (int i = 0; i < max_maps; i++)
		for (int j = 0; f->m[i].at && j < f->m[i].n; j++)
			if (f->m[i].p[j].present && (f->m[i].first + j + 1) * page > least)
				least = (f->m[i].first + j + 1) * page;
	if (to < least)
		to = least; // at the end of a page
	int fd = d->fd[a_slot(d)];
	step(f, "ftruncate %d from %ld to %ld", fd, (long)f->size, (long)to);
	if (ftruncate(fd, to))
		bad("ftruncate to %ld", (long)to);
	if (to < f->size)
		memset(f->data + to, 0, f->size - to);
	f->size = to;
}

static void sync_some(struct file *f, struct desc *d) {
	int fd = d->fd[a_slot(d)];
	step(f, "fdatasync %d", fd);
	if (fdatasync(fd))
		bad("fdatasync");
}

// set_flags changes what F_SETFL can. O_DIRECT is not taken away: of a file that a layer
// passes through the kernel does not heed that (docs/layer.md).
static void set_flags(struct file *f, struct desc *d) {
	const int can = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;
	static const int bits[] = {O_APPEND, O_NONBLOCK, O_DIRECT, O_NOATIME};
	int fd = d->fd[a_slot(d)], to = d->flags ^ bits[any(4)];
	to |= d->flags & O_DIRECT;
	if (!change_append)
		to = (to & ~O_APPEND) | (d->flags & O_APPEND);
	step(f, "F_SETFL %d %#o", fd, to & can);
	if (fcntl(fd, F_SETFL, to & can))
		bad("F_SETFL");
	d->flags = to;
}

static void set_owner(struct file *f, struct desc *d) {
	int fd = d->fd[a_slot(d)];
	static const int sigs[] = {0, SIGURG, SIGWINCH};
	step(f, "F_SETOWN, F_SETSIG %d", fd);
	d->owner = any(2) ? getpid() : 0;
	d->sig = sigs[any(3)];
	if (fcntl(fd, F_SETOWN, d->owner) || fcntl(fd, F_SETSIG, d->sig))
		bad("F_SETOWN, F_SETSIG");
}

// share_with_child: the offset is one of parent and child.
static void share_with_child(struct file *f, struct desc *d) {
	int fd = d->fd[a_slot(d)], nap = any(4) ? 0 : any(3000);
	off_t to = any(max_size);
	step(f, "a child moves %d from %ld to %ld, naps %d us", fd, (long)d->off, (long)to, nap);
	pid_t p = a_child();
	if (p == 0) {
		in_child(lseek(fd, 0, SEEK_CUR) == d->off, __LINE__);
		in_child(lseek(fd, to, SEEK_SET) == to, __LINE__);
		usleep(nap);
		in_child(lseek(fd, 0, SEEK_CUR) == to, __LINE__);
		if (reads(d) && !(d->flags & O_DIRECT)) {
			uint8_t b[64];
			size_t n = expect(f, to, sizeof b);
			in_child(pread(fd, b, sizeof b, to) == (ssize_t)n, __LINE__);
			in_child(!memcmp(b, f->data + to, n), __LINE__);
		}
		_exit(0);
	}
	child_ends(p, "a child that moves the offset");
	d->off = to;
	if (lseek(fd, 0, SEEK_CUR) != to)
		bad("the offset that a child has set");
}

static char *self;

// start_program: a program that is started has what is not close-on-exec.
static void start_program(struct file *f, struct desc *d) {
	int s = a_slot(d), fd = d->fd[s];
	char number[16], offset[24], first[16];
	uint8_t b = f->data[0];
	snprintf(number, sizeof number, "%d", fd);
	snprintf(offset, sizeof offset, "%ld", d->cloexec[s] ? -1 : (long)d->off);
	snprintf(first, sizeof first, "%d", !reads(d) || f->size == 0 || d->flags & O_DIRECT ? -1 : b);
	step(f, "a program is started with %d, close-on-exec %d", fd, d->cloexec[s]);
	pid_t p = any(2) ? vfork() : a_child();
	if (p == 0) {
		execl(self, self, "started", number, offset, first, (char *)0);
		_exit(199);
	}
	if (p < 0)
		bad("vfork");
	child_ends(p, "a program that was started");
}

static int started(char **a) {
	int fd = atoi(a[0]), first = atoi(a[2]);
	off_t want = atol(a[1]);
	off_t got = lseek(fd, 0, SEEK_CUR);
	if (got != want || (want < 0 && errno != EBADF))
		return 2;
	uint8_t b;
	if (want >= 0 && first >= 0 && (pread(fd, &b, 1, 0) != 1 || b != first))
		return 3;
	return 0;
}

// check_data compares an open description with the model.
static void check_data(struct file *f, struct desc *d) {
	int s = a_slot(d), fd = d->fd[s], got;
	step(f, "check %d", fd);
	if ((got = fcntl(fd, F_GETFD)) != d->cloexec[s])
		bad("descriptor %d: F_GETFD %d, not %d", fd, got, d->cloexec[s]);
	if ((got = fcntl(fd, F_GETFL)) < 0 || ((got ^ d->flags) & ~(O_CLOEXEC | O_TMPFILE | O_NOFOLLOW))) // those are of the open
		bad("descriptor %d: F_GETFL %#o, not %#o", fd, got, d->flags);
	struct stat st;
	if (fstat(fd, &st))
		bad("descriptor %d: fstat", fd);
	if (st.st_ino != f->ino || st.st_size != f->size)
		bad("descriptor %d: inode %ld of %ld bytes, not %ld of %ld", fd, (long)st.st_ino, (long)st.st_size, (long)f->ino, (long)f->size);
	if (st.st_nlink != (unsigned)(!!f->name[0] + !!f->name2[0]))
		bad("descriptor %d: %d links, not %d", fd, (int)st.st_nlink, !!f->name[0] + !!f->name2[0]);
	if (d->flags & O_PATH) {
		uint8_t b;
		if (pread(fd, &b, 1, 0) != -1 || errno != EBADF)
			bad("descriptor %d: an O_PATH descriptor can be read", fd);
		return;
	}
	off_t off = lseek(fd, 0, SEEK_CUR);
	if (off != d->off)
		bad("descriptor %d: offset %ld, not %ld", fd, (long)off, (long)d->off);
	if ((got = fcntl(fd, F_GETOWN)) != d->owner)
		bad("descriptor %d: owner %d, not %d", fd, got, d->owner);
	if ((got = fcntl(fd, F_GETSIG)) != d->sig)
		bad("descriptor %d: signal %d, not %d", fd, got, d->sig);
	if (!reads(d))
		return;
	ssize_t n = pread(fd, aligned, max_size, 0);
	if (n != f->size)
		bad("descriptor %d: %zd bytes, not %ld", fd, n, (long)f->size);
	same_bytes(f, aligned, 0, n, "check");
}
