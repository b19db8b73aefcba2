// Random memory maps: shared and private, changed, protected, locked, cut in pieces.

static const int protections[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};

static struct mapping *a_map(struct file *f) {
	int from = any(max_maps);
	for (int i = 0; i < max_maps; i++) {
		struct mapping *m = &f->m[(from + i) % max_maps];
		if (m->at && m->proc == proc)
			return m;
	}
	return 0;
}

static void make_map(struct file *f, struct desc *d) {
	struct mapping *m = 0;
	for (int i = 0; i < max_maps; i++)
		if (!f->m[i].at)
			m = &f->m[i];
	int have = (f->size + page - 1) / page;
	if (!m || have == 0 || !reads(d))
		return;
	memset(m, 0, sizeof *m);
	m->proc = proc;
	m->private = any(2);
	m->writable = m->private || writes(d);
	m->first = any(have);
	m->n = 1 + any(have - m->first);
	int kind = m->writable ? any(3) : any(2), fd = d->fd[a_slot(d)];
	step(f, "map %d: %s, protection %d, pages %d to %d", fd, m->private ? "private" : "shared", kind, m->first, m->first + m->n);
	char *at = mmap(0, m->n * page, protections[kind], m->private ? MAP_PRIVATE : MAP_SHARED, fd, m->first * page);
	if (at == MAP_FAILED)
		bad("mmap");
	m->at = at;
	for (int i = 0; i < m->n; i++)
		m->p[i].present = 1, m->p[i].prot = kind;
}

static void gone_pages(struct mapping *m, int from, int to) {
	int left = 0;
	for (int i = from; i < to; i++)
		m->p[i].present = 0;
	for (int i = 0; i < m->n; i++)
		left |= m->p[i].present;
	if (!left)
		m->at = 0;
}

// copy_page: the kernel copies private pages that are locked and may be written to,
// by either mlock or mprotect.
static void copy_page(struct file *f, struct mapping *m, int i) {
	if (!m->private || m->p[i].prot != 2 || m->p[i].own)
		return;
	memcpy(m->own[i], f->data + (m->first + i) * page, page);
	m->p[i].own = 1;
}

static void change_map(struct file *f, struct mapping *m) {
	int from = any(m->n), to = from + 1 + any(m->n - from);
	for (int i = from; i < to; i++)
		if (!m->p[i].present)
			to = i;
	if (from >= to)
		return;
	char *at = m->at + from * page;
	size_t n = (to - from) * page;
	switch (any(7)) {
	case 0: {
		int kind = m->writable ? any(3) : any(2);
		step(f, "mprotect %p pages %d to %d: %d", m->at, from, to, kind);
		if (mprotect(at, n, protections[kind]))
			bad("mprotect");
		for (int i = from; i < to; i++) {
			m->p[i].prot = kind;
			if (m->p[i].locked)
				copy_page(f, m, i);
		}
		break;
	}
	case 1: {
		int lock = any(2);
		for (int i = from; i < to; i++)
			if (m->p[i].prot == 0)
				return; // mlock of what cannot be read fails after it has locked
		step(f, "%s %p pages %d to %d", lock ? "mlock" : "munlock", m->at, from, to);
		if (lock ? mlock(at, n) : munlock(at, n))
			bad("mlock");
		for (int i = from; i < to; i++) {
			m->p[i].locked = lock;
			if (lock)
				copy_page(f, m, i);
		}
		break;
	}
	case 2: {
		static const int advice[] = {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTDUMP, MADV_DODUMP};
		int a = advice[any(6)];
		step(f, "madvise %p pages %d to %d: %d", m->at, from, to, a);
		if (madvise(at, n, a))
			bad("madvise(%d)", a);
		break;
	}
	case 3:
		for (int i = from; i < to; i++)
			if (m->p[i].locked)
				return; // EINVAL
		step(f, "MADV_DONTNEED %p pages %d to %d", m->at, from, to);
		if (madvise(at, n, MADV_DONTNEED))
			bad("MADV_DONTNEED");
		for (int i = from; i < to; i++)
			m->p[i].own = 0;
		break;
	case 4:
		step(f, "munmap %p pages %d to %d", m->at, from, to);
		if (munmap(at, n))
			bad("munmap");
		gone_pages(m, from, to);
		break;
	case 5:
		step(f, "msync %p pages %d to %d", m->at, from, to);
		if (msync(at, n, MS_SYNC))
			bad("msync");
		break;
	default: // write
		for (int i = from; i < to; i++) {
			off_t start = (m->first + i) * page, end = f->size < start + page ? f->size : start + page;
			if (m->p[i].prot != 2 || end <= start)
				continue;
			off_t a = start + any(end - start), b = a + 1 + any(end - a);
			step(f, "write to map %p page %d: %ld to %ld", m->at, i, (long)a, (long)b);
			new_bytes(f, aligned, a, b - a);
			memcpy(m->at + (a - m->first * page), aligned, b - a);
			if (!m->private) {
				memcpy(f->data + a, aligned, b - a);
				continue;
			}
			copy_page(f, m, i);
			memcpy(m->own[i] + (a - start), aligned, b - a);
		}
	}
}

// bad_map tells more of a byte that is not what it should be: what a read gives.
static void bad_map(struct file *f, struct mapping *m, int i, off_t o, uint8_t want) {
	struct desc *d = a_desc(f, reads);
	uint8_t is = (uint8_t)m->at[i * page + o], now;
	if (!d)
		step(f, "map: byte %ld is %#x, not %#x", (long)o, is, want);
	else if (pread(d->fd[a_slot(d)], aligned, page, (m->first + i) * page) < 0)
		step(f, "map: byte %ld is %#x, not %#x; read fails: %s", (long)o, is, want, strerror(errno));
	else
		now = aligned[o], step(f, "map: byte %ld is %#x, not %#x; a read gives %#x, the map after it %#x", (long)o, is, want, now, (uint8_t)m->at[i * page + o]);
}

// check_map compares what is there, and how it may be used: the kernel answers
// EFAULT for what may not be read or written, and msync tells of locked pages.
static void check_map(struct file *f, struct mapping *m) {
	int i = any(m->n);
	if (!m->p[i].present)
		return;
	char *at = m->at + i * page, b;
	off_t start = (m->first + i) * page, end = f->size < start + page ? f->size : start + page;
	step(f, "check map %p page %d", m->at, i);
	int locked = msync(at, page, MS_INVALIDATE | MS_ASYNC);
	if (m->p[i].locked ? locked != -1 || errno != EBUSY : locked != 0)
		bad("map %p page %d: msync %d, should %s locked", m->at, i, locked, m->p[i].locked ? "be" : "not be");
	if (end <= start)
		return;
	ssize_t n = write(pipes[1], at, 1);
	if (m->p[i].prot ? n != 1 : n != -1 || errno != EFAULT)
		bad("map %p page %d of protection %d: a read gives %zd", m->at, i, m->p[i].prot, n);
	if (n != 1)
		return;
	if (read(pipes[0], &b, 1) != 1)
		bad("pipe");
	if (m->p[i].prot == 1) {
		if (write(pipes[1], &b, 1) != 1)
			bad("pipe");
		n = read(pipes[0], at, 1);
		if (n != -1 || errno != EFAULT)
			bad("map %p page %d may not be written, and was: %zd", m->at, i, n);
		if (read(pipes[0], &b, 1) != 1 && errno != EAGAIN) // a pipe may have dropped it
			bad("pipe");
	}
	const uint8_t *want = m->p[i].own ? m->own[i] : f->data + start;
	for (off_t o = 0; o < end - start; o++)
		if ((uint8_t)at[o] != want[o])
			bad_map(f, m, i, o, want[o]), bad("%s map %p page %d (%s): byte %ld is %#x, not %#x", m->private ? "private" : "shared", m->at, i, m->p[i].own ? "modified" : "as the file", (long)o, (uint8_t)at[o], want[o]);
}
