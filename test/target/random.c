// random opens random objects in random ways, keeps a model of what each must be
// (random.h), and compares all of it without end. It is what tests swap files in.
//
//   random DIR SEED [no-description-locks] [no-maps] [keep-append]
//
// Its processes and threads work on files of their own and on some that all have in
// common. What docs/swap.md and docs/layer.md name as limits is not done.
//
// It prints "ready" and answers each line of stdin with "ok …" or "bad: …", after which
// it ends; "quit" ends it. "bad" comes with the last actions on stderr. The same seed gives
// each thread the same draws; how the threads take turns is up to the kernel.
#include "random.h"
#include "random_data.h"
#include "random_locks.h"
#include "random_maps.h"
#include "random_names.h"

static void with_desc(struct file *f, struct desc *d) {
	if (!d)
		return;
	if (d->flags & O_PATH) {
		if (!f->common)
			switch (any(6)) {
			case 0: close_slot(f, d); break;
			case 1: dup_slot(f, d); break;
			case 2: set_cloexec(f, d); break;
			default: check_data(f, d);
			}
		return;
	}
	switch (any(f->common ? 17 : 22)) {
	case 0: case 1: if (reads(d)) read_some(f, d, 0); break;
	case 2: if (reads(d)) read_some(f, d, 1); break;
	case 3: case 4: if (writes(d)) write_some(f, d, 0); break;
	case 5: case 6: if (writes(d)) write_some(f, d, 1); break;
	case 7: seek_some(f, d); break;
	case 8: if (writes(d)) resize(f, d); break;
	case 9: if (!any(4)) sync_some(f, d); break;
	case 10: set_flags(f, d); break;
	case 11: if (!f->common) set_owner(f, d); break;
	case 12: if (!any(2)) share_with_child(f, d); break;
	case 13: if (!any(4)) start_program(f, d); break;
	case 14: if (description_locks) any(2) ? lock_range(f, d, 1) : lock_whole(f, d); break;
	case 15: if (!any(2)) check_locks(f, d); break;
	case 16: if (memory_maps) make_map(f, d); break;
	case 17: close_slot(f, d); break;
	case 18: dup_slot(f, d); break;
	case 19: set_cloexec(f, d); break;
	case 20: case 21: lock_range(f, d, 0); break;
	}
}

// verify compares all that there is of a file.
static void verify(struct file *f) {
	for (int i = 0; i < max_descs; i++)
		if (f->d[i].live)
			check_data(f, &f->d[i]);
	for (int i = 0; i < max_maps; i++)
		if (f->m[i].at && f->m[i].proc == proc)
			check_map(f, &f->m[i]);
	check_name(f);
}

static void act(void) {
	struct file *f = any(8) ? &sh->f[common_files + proc * files_each + any(files_each)] : &sh->f[any(common_files)];
	struct mapping *m;
	switch (any(24)) {
	case 0: list(); return;
	case 1: any(4) ? check_dir() : change_dir(); return;
	}
	if (pthread_mutex_trylock(&f->lock))
		return;
	if (!f->live)
		create(f);
	switch (any(12)) {
	case 0: if (!f->common) open_again(f); break;
	case 1: if (!f->common) any(2) ? rename_file(f) : link_file(f); break;
	case 2: if (!f->common && !any(4)) unlink_file(f); break;
	case 3: if (!any(4) && !f->common) pass(f); break;
	case 4: verify(f); break;
	case 5: case 6:
		if ((m = a_map(f)))
			any(3) ? change_map(f, m) : check_map(f, m);
		break;
	default: with_desc(f, a_desc(f, 0));
	}
	int used = f->name[0] || a_desc(f, 0);
	for (int i = 0; i < max_maps; i++)
		used |= f->m[i].at != 0;
	f->live = used;
	pthread_mutex_unlock(&f->lock);
}

static void *worker(void *a) {
	thread = (int)(long)a;
	state = mix(seed ^ mix(proc * 100 + thread));
	aligned = mmap(0, max_size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (aligned == MAP_FAILED || pipe2(pipes, O_CLOEXEC | O_NONBLOCK))
		bad("pipe");
	while (!atomic_load(&sh->stop) && !atomic_load(&sh->bad))
		act();
	return 0;
}

// finish verifies what this process has, when its threads have ended.
static void finish(void) {
	if (atomic_load(&sh->bad))
		return;
	aligned = mmap(0, max_size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (aligned == MAP_FAILED || pipe2(pipes, O_CLOEXEC | O_NONBLOCK))
		bad("pipe");
	for (int i = 0; i < files_each; i++)
		if (sh->f[common_files + proc * files_each + i].live)
			verify(&sh->f[common_files + proc * files_each + i]);
}

static void run_threads(pthread_t *t) {
	for (long i = 0; i < max_threads; i++)
		if (pthread_create(&t[i], 0, worker, (void *)i))
			bad("thread");
}

static void at_number(int fd, int number) {
	if (fd < 0 || dup3(fd, number, 0) < 0 || close(fd)) {
		perror("open");
		exit(2);
	}
}

static void prepare(const char *dir) {
	char name[32];
	struct stat st;
	pthread_mutexattr_t ma;
	pthread_rwlockattr_t ra;
	pthread_mutexattr_init(&ma);
	pthread_mutexattr_setpshared(&ma, PTHREAD_PROCESS_SHARED);
	pthread_rwlockattr_init(&ra);
	pthread_rwlockattr_setpshared(&ra, PTHREAD_PROCESS_SHARED);
	if (chdir(dir)) {
		perror(dir);
		exit(2);
	}
	for (int i = 0; i < folders; i++) {
		snprintf(name, sizeof name, "d%d", i);
		mkdir(name, 0755);
		at_number(open(name, O_RDONLY | O_DIRECTORY), fd_folders + i);
		if (fstat(fd_folders + i, &st))
			exit(2);
		sh->folder_ino[i] = st.st_ino;
	}
	mkdir("list", 0755);
	at_number(open("list", O_RDONLY | O_DIRECTORY), fd_list);
	for (int i = 0; i < listed; i++) {
		snprintf(name, sizeof name, "e%d", i);
		close(openat(fd_list, name, O_CREAT | O_WRONLY, 0600));
	}
	for (int i = 0; i < max_procs; i++) {
		sh->l[i].fd = -1;
		pthread_mutex_init(&sh->l[i].lock, &ma);
		pthread_rwlock_init(&sh->cwd[i].lock, &ra);
	}
	for (int i = 0; i < max_files; i++) {
		sh->f[i].number = i;
		sh->f[i].common = i < common_files;
		pthread_mutex_init(&sh->f[i].lock, &ma);
	}
	for (int i = 0; i < common_files; i++) {
		static const int flags[] = {0, O_APPEND, O_DIRECT, O_DSYNC};
		struct file *f = &sh->f[i];
		snprintf(f->name, sizeof f->name, "common%d", i);
		at_number(openat(fd_folders, f->name, O_RDWR | O_CREAT | O_TRUNC | flags[i], 0600), fd_common + i);
		begin(f, &f->d[0], fd_common + i, O_RDWR | flags[i]);
		f->live = 1;
	}
	if (fchdir(fd_folders))
		exit(2);
}

// running: every thread has done something since the last time, or does in time.
static void running(long *before) {
	for (int i = 0; i < max_procs * max_threads; i++) {
		for (int n = 0; atomic_load(&sh->progress[i]) == before[i] && !atomic_load(&sh->bad); n++) {
			usleep(1000);
			if (n > 40000 && !atomic_fetch_add(&sh->bad, 1))
				snprintf(sh->text, sizeof sh->text, "seed %llu step %ld object -1 (process %d, thread %d): it hangs", (unsigned long long)seed, before[i], i / max_threads, i % max_threads);
		}
		before[i] = atomic_load(&sh->progress[i]);
	}
}

int main(int argc, char **argv) {
	if (argc > 4 && !strcmp(argv[1], "started"))
		return started(argv + 2);
	if (argc < 3)
		return 2;
	self = argv[0];
	seed = strtoull(argv[2], 0, 10);
	for (int i = 3; i < argc; i++) {
		description_locks &= strcmp(argv[i], "no-description-locks") != 0;
		memory_maps &= strcmp(argv[i], "no-maps") != 0;
		change_append &= strcmp(argv[i], "keep-append") != 0;
	}
	sh = mmap(0, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED)
		return 2;
	struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	sigaction(SIGBUS, &sa, 0);
	sigaction(SIGSEGV, &sa, 0);
	prepare(argv[1]);
	pthread_t t[max_threads];
	pid_t children[max_procs] = {0};
	for (proc = 1; proc < max_procs; proc++)
		if ((children[proc] = fork()) == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			run_threads(t);
			for (int i = 0; i < max_threads; i++)
				pthread_join(t[i], 0);
			finish();
			_exit(0);
		}
	proc = 0;
	run_threads(t);
	printf("ready\n");
	fflush(stdout);
	char line[64];
	long before[max_procs * max_threads] = {0};
	int quit = 0, st;
	while (!quit && fgets(line, sizeof line, stdin)) {
		running(before);
		if (!strncmp(line, "quit", 4)) {
			quit = 1;
			if (!atomic_load(&sh->bad)) {
				atomic_store(&sh->stop, 1);
				for (int i = 0; i < max_threads; i++)
					pthread_join(t[i], 0);
				finish();
				for (int i = 1; i < max_procs; i++)
					if (waitpid(children[i], &st, 0) != children[i] || st)
						fprintf(stderr, "process %d ends with %#x\n", i, st);
			}
		}
		if (atomic_load(&sh->bad)) {
			usleep(200000); // until the text is there
			last_actions(stderr, 60);
			printf("bad: %s\n", sh->text);
			fflush(stdout);
			_exit(1);
		}
		printf("ok %ld actions\n", atomic_load(&sh->steps));
		fflush(stdout);
	}
	atomic_store(&sh->stop, 1);
	_exit(0);
}
