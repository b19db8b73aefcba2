// Random names, descriptors and directories.

// no_posix_locks: POSIX locks go with any close of the file in their process.
static void no_posix_locks(struct file *f, const struct desc *d) {
	if (!(d->flags & O_PATH))
		memset(f->posix, 0, sizeof f->posix);
}

static int high(const struct file *f, int d, int s) {
	return high_numbers + ((f->number - common_files) % files_each * max_descs + d) * max_slots + s;
}

// begin makes a description part of the model.
static void begin(struct file *f, struct desc *d, int fd, int flags) {
	memset(d, 0, sizeof *d);
	for (int i = 0; i < max_slots; i++)
		d->fd[i] = -1;
	d->fd[0] = fd;
	d->cloexec[0] = !!(flags & O_CLOEXEC);
	int got = fcntl(fd, F_GETFL), keeps = O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC | O_DIRECT | O_NOATIME | O_PATH;
	if ((got ^ flags) & keeps && !(flags & O_PATH))
		bad("open with %#o: F_GETFL is %#o", flags, got);
	d->flags = got;
	d->live = 1;
	struct stat st;
	if (fstat(fd, &st))
		bad("fstat");
	f->ino = st.st_ino;
}

static int random_flags(void) {
	static const int access[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR};
	int flags = access[any(4)];
	if (!any(4)) flags |= O_APPEND;
	if (!any(5)) flags |= O_DIRECT;
	if (!any(5)) flags |= O_NOATIME;
	if (!any(6)) flags |= any(2) ? O_DSYNC : O_SYNC;
	if (!any(5)) flags |= O_NONBLOCK;
	if (any(2)) flags |= O_CLOEXEC;
	return flags;
}

// create gives a file that is not there its first name and description, or only this.
static void create(struct file *f) {
	int flags = random_flags(), fd;
	f->size = 0;
	f->linkable = 0;
	memset(f->data, 0, sizeof f->data);
	memset(f->posix, 0, sizeof f->posix);
	memset(f->name, 0, sizeof f->name);
	memset(f->name2, 0, sizeof f->name2);
	f->folder = any(folders);
	if (!any(3)) {
		flags = (flags & ~O_ACCMODE) | O_RDWR;
		int excl = any(2) ? O_EXCL : 0;
		step(f, "open O_TMPFILE %#o", flags | excl);
		fd = openat(fd_folders + f->folder, ".", flags | O_TMPFILE | excl, 0600);
		f->linkable = !excl;
	} else {
		snprintf(f->name, sizeof f->name, "f%d-%d", f->number, any(1000));
		step(f, "create %s %#o", f->name, flags);
		fd = openat(fd_folders + f->folder, f->name, flags | O_CREAT | O_EXCL, 0600);
	}
	if (fd < 0)
		bad("create with %#o", flags);
	begin(f, &f->d[0], fd, flags);
	f->live = 1;
}

static void open_again(struct file *f) {
	struct desc *d = 0;
	for (int i = 0; i < max_descs; i++)
		if (!f->d[i].live)
			d = &f->d[i];
	if (!d || !f->name[0])
		return;
	int flags = random_flags(), fd;
	if (!any(8))
		flags = O_PATH | (flags & O_CLOEXEC);
	int second = f->name2[0] && any(2), folder = second ? f->folder2 : f->folder;
	const char *name = second ? f->name2 : f->name;
	step(f, "open %s %#o", name, flags);
	pthread_rwlock_rdlock(&sh->cwd[proc].lock);
	if (sh->cwd[proc].folder == folder && any(2))
		fd = open(name, flags);
	else if (any(2)) {
		char path[64];
		snprintf(path, sizeof path, "../d%d/%s", folder, name);
		fd = open(path, flags);
	} else
		fd = openat(fd_folders + folder, name, flags);
	pthread_rwlock_unlock(&sh->cwd[proc].lock);
	if (fd < 0)
		bad("open %s with %#o", name, flags);
	ino_t was = f->ino;
	begin(f, d, fd, flags);
	if (f->ino != was)
		bad("%s is inode %ld, not %ld", name, (long)f->ino, (long)was);
}

static void close_slot(struct file *f, struct desc *d) {
	int s = a_slot(d), last = 1;
	for (int i = 0; i < max_slots; i++)
		last &= i == s || d->fd[i] < 0;
	step(f, "close %d%s", d->fd[s], last ? ", the last" : "");
	if (last)
		drop_locks(f, d, d->fd[s]);
	if (close(d->fd[s]))
		bad("close %d", d->fd[s]);
	no_posix_locks(f, d);
	d->fd[s] = -1;
	d->live = !last;
}

static void dup_slot(struct file *f, struct desc *d) {
	int from = a_slot(d), to = any(max_slots), n, cloexec = any(2);
	if (to == from)
		return;
	if (d->fd[to] >= 0 && d->fd[to] < high_numbers) {
		if (close(d->fd[to]))
			bad("close %d", d->fd[to]);
		no_posix_locks(f, d);
		d->fd[to] = -1;
	}
	int number = high(f, d - f->d, to), low = d->fd[to] < 0 && any(2);
	step(f, "dup %d to %d, close-on-exec %d", d->fd[from], low ? -1 : number, cloexec);
	if (low)
		n = fcntl(d->fd[from], cloexec ? F_DUPFD_CLOEXEC : F_DUPFD, 0);
	else {
		n = dup3(d->fd[from], number, cloexec ? O_CLOEXEC : 0);
		if (d->fd[to] >= 0)
			no_posix_locks(f, d); // it was closed
	}
	if (n < 0 || (!low && n != number))
		bad("dup of %d: %d", d->fd[from], n);
	d->fd[to] = n;
	d->cloexec[to] = cloexec;
}

static void set_cloexec(struct file *f, struct desc *d) {
	int s = a_slot(d);
	step(f, "F_SETFD %d %d", d->fd[s], !d->cloexec[s]);
	d->cloexec[s] = !d->cloexec[s];
	if (fcntl(d->fd[s], F_SETFD, d->cloexec[s]))
		bad("F_SETFD");
}

static void rename_file(struct file *f) {
	char to[24];
	int folder = any(folders);
	if (!f->name[0])
		return;
	snprintf(to, sizeof to, "r%d-%d", f->number, any(100000));
	step(f, "rename %s to %s in %d", f->name, to, folder);
	if (renameat(fd_folders + f->folder, f->name, fd_folders + folder, to))
		bad("rename %s", f->name);
	f->folder = folder;
	strcpy(f->name, to);
}

static void link_file(struct file *f) {
	char to[24], path[32];
	int folder = any(folders);
	snprintf(to, sizeof to, "l%d-%d", f->number, any(100000));
	if (f->name[0] && !f->name2[0]) {
		step(f, "link %s to %s in %d", f->name, to, folder);
		if (linkat(fd_folders + f->folder, f->name, fd_folders + folder, to, 0))
			bad("link %s", f->name);
		strcpy(f->name2, to);
		f->folder2 = folder;
		return;
	}
	struct desc *d = a_desc(f, 0);
	if (f->name[0] || !f->linkable || !d)
		return;
	snprintf(path, sizeof path, "/proc/self/fd/%d", d->fd[a_slot(d)]);
	step(f, "link %s to %s in %d", path, to, folder);
	if (linkat(AT_FDCWD, path, fd_folders + folder, to, AT_SYMLINK_FOLLOW)) {
		// A file that was open before a graft cannot get its first name through the layer: only the
		// kernel's own O_TMPFILE makes an inode of which it believes that (I_LINKABLE, vfs_link)
		if (errno != ENOENT || !description_locks)
			bad("link %s", path);
		return;
	}
	strcpy(f->name, to);
	f->folder = folder;
	f->linkable = 0; // when it has lost this name it cannot have another one
}

static void unlink_file(struct file *f) {
	if (!f->name[0])
		return;
	step(f, "unlink %s", f->name);
	if (unlinkat(fd_folders + f->folder, f->name, 0))
		bad("unlink %s", f->name);
	strcpy(f->name, f->name2);
	f->folder = f->folder2;
	f->name2[0] = 0;
}

// check_name: what is found by name is the file.
static void check_name(struct file *f) {
	struct stat st;
	if (!f->name[0])
		return;
	step(f, "check %s", f->name);
	if (fstatat(fd_folders + f->folder, f->name, &st, 0) || st.st_ino != f->ino || st.st_size != f->size)
		bad("%s: inode %ld of %ld bytes, not %ld of %ld", f->name, (long)st.st_ino, (long)st.st_size, (long)f->ino, (long)f->size);
}

// pass sends a descriptor to ourselves and takes it out at once. It is a description
// that nothing else refers to: one that a swap finds in flight stays on the old file.
static void pass(struct file *f) {
	if (!f->name[0])
		return;
	int pair[2], fd = openat(fd_folders + f->folder, f->name, O_RDONLY | O_CLOEXEC), got;
	off_t at = any(max_size);
	step(f, "pass a descriptor of %s", f->name);
	if (fd < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) || lseek(fd, at, SEEK_SET) != at)
		bad("open, socketpair");
	char one = 1, control[CMSG_SPACE(sizeof fd)] = {0};
	struct iovec v = {&one, 1};
	struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&h);
	c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	if (sendmsg(pair[0], &h, 0) != 1)
		bad("sendmsg");
	close(fd);
	h.msg_controllen = sizeof control;
	if (recvmsg(pair[1], &h, MSG_CMSG_CLOEXEC) != 1 || !(c = CMSG_FIRSTHDR(&h)))
		bad("recvmsg");
	memcpy(&got, CMSG_DATA(c), sizeof got);
	uint8_t b[100];
	size_t n = expect(f, at, sizeof b);
	if (lseek(got, 0, SEEK_CUR) != at || read(got, b, sizeof b) != (ssize_t)n || memcmp(b, f->data + at, n))
		bad("a descriptor that was passed");
	close(got);
	close(pair[0]);
	close(pair[1]);
	memset(f->posix, 0, sizeof f->posix); // the close
}

// ---- directories

struct entry { uint64_t ino; int64_t off; unsigned short len; unsigned char type; char name[]; };

static void list(void) {
	struct listing *l = &sh->l[proc];
	pthread_mutex_lock(&l->lock);
	if (l->fd < 0 || !any(40)) {
		if (l->fd >= 0 && close(l->fd))
			bad("close of a folder");
		step(0, "opendir");
		if ((l->fd = openat(fd_list, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
			bad("opendir");
		memset(l->seen, 0, sizeof l->seen);
		l->count = l->kept = 0;
	}
	char b[400];
	int go_back = l->kept && !any(8);
	off_t now = lseek(l->fd, 0, SEEK_CUR);
	step(0, "getdents %d at %ld, %d entries were read", l->fd, (long)now, l->count);
	if (go_back)
		step(0, "but first at %ld, a position of before", (long)l->kept);
	if (go_back && lseek(l->fd, l->kept, SEEK_SET) != l->kept)
		bad("lseek in a folder");
	long n = syscall(SYS_getdents64, l->fd, b, sizeof b);
	if (n < 0)
		bad("getdents64");
	for (long i = 0; i < n; i += ((struct entry *)(b + i))->len) {
		struct entry *e = (struct entry *)(b + i);
		if (e->name[0] != 'e')
			continue;
		int k = atoi(e->name + 1);
		if (go_back) {
			if (k != l->next)
				bad("position %ld leads to e%d, not e%d", (long)l->kept, k, l->next);
			break;
		}
		if (k < 0 || k >= listed || l->seen[k]++)
			bad("entry %s was read again", e->name);
		l->count++;
		struct entry *after = (struct entry *)(b + i + e->len);
		if (i + e->len < n && after->name[0] == 'e' && !any(3))
			l->kept = e->off, l->next = atoi(after->name + 1);
	}
	if (go_back) {
		if (lseek(l->fd, now, SEEK_SET) != now)
			bad("lseek in a folder");
	} else if (n == 0) {
		if (l->count != listed)
			bad("a folder has %d entries, not %d", l->count, listed);
		if (lseek(l->fd, 0, SEEK_SET))
			bad("lseek in a folder");
		memset(l->seen, 0, sizeof l->seen);
		l->count = 0;
	}
	pthread_mutex_unlock(&l->lock);
}

static void change_dir(void) {
	int to = any(folders);
	char path[32];
	pthread_rwlock_wrlock(&sh->cwd[proc].lock);
	step(0, "chdir to d%d", to);
	snprintf(path, sizeof path, "../d%d", to);
	if (any(2) ? chdir(path) : fchdir(fd_folders + to))
		bad("chdir");
	sh->cwd[proc].folder = to;
	pthread_rwlock_unlock(&sh->cwd[proc].lock);
}

static unsigned long device(const char *path) {
	struct stat st;
	return stat(path, &st) ? 0 : st.st_dev;
}

static const char *to_folder(int folder) {
	static __thread char path[32];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd_folders + folder);
	return path;
}

static void check_dir(void) {
	char path[4096], want[8];
	struct stat st;
	pthread_rwlock_rdlock(&sh->cwd[proc].lock);
	int is = sh->cwd[proc].folder;
	step(0, "getcwd");
	snprintf(want, sizeof want, "/d%d", is);
	if (!getcwd(path, sizeof path) || strlen(path) < 4 || strcmp(path + strlen(path) - 3, want))
		bad("getcwd: %s, not …%s; it is on device %#lx, folder %d on %#lx", path, want, device("."), is, device(to_folder(is)));
	if (stat(".", &st) || st.st_ino != sh->folder_ino[is])
		bad("the working directory is inode %ld, not %ld", (long)st.st_ino, (long)sh->folder_ino[is]);
	pthread_rwlock_unlock(&sh->cwd[proc].lock);
}
