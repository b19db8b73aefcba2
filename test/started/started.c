/*
 * started is a target that runs code from files that lie where a graft goes:
 * its own executable and a library. Each page of both holds one function, so
 * that a test can run a page that was never touched before.
 *
 *   started                 reads commands from its standard input, one a line:
 *     call N                calls function N (0 to 255) of the executable
 *     load PATH             loads the library at PATH
 *     lib N                 calls function N of the library
 *     mark / marked         writes to a page of the executable's data, reads it
 *     exe                   opens /proc/self/exe and reads its first bytes
 *     reexec                executes /proc/self/exe
 *     seal PATH             maps 1 MiB of a file, so that nobody can change the map
 *     sealed N              reads the first byte of page N of it
 *     open PATH / close     opens a file for reading and writing, closes it
 *     read                  reads at the start of it, up to 100 bytes
 *
 * Each answer is one line, "ok …" or "error …". -DLIBRARY makes the library,
 * -DSTATIC an executable that loads none.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#if !defined LIBRARY && !defined STATIC
#include <dlfcn.h>
#endif

#define PAGE_OF_CODE(n) static __attribute__((noinline, aligned(4096))) int f##n(int x) { return x * 1000 + 0x##n; }
#define HEX(X, h) X(h##0) X(h##1) X(h##2) X(h##3) X(h##4) X(h##5) X(h##6) X(h##7) \
	X(h##8) X(h##9) X(h##a) X(h##b) X(h##c) X(h##d) X(h##e) X(h##f)
#define ALL(X) HEX(X, 0) HEX(X, 1) HEX(X, 2) HEX(X, 3) HEX(X, 4) HEX(X, 5) HEX(X, 6) HEX(X, 7) \
	HEX(X, 8) HEX(X, 9) HEX(X, a) HEX(X, b) HEX(X, c) HEX(X, d) HEX(X, e) HEX(X, f)
ALL(PAGE_OF_CODE)

#define NAME(n) f##n,
static int (*const functions[])(int) = {ALL(NAME)};

int started_call(int n) { return functions[n & 255](n); }

#ifndef LIBRARY
static char data[2 * 4096] = "data of the program";

int main(int argc, char **argv)
{
	char line[5000];
#ifndef STATIC
	int (*lib)(int) = NULL;
#endif
	int fd = -1;
	unsigned char *sealed = NULL;

	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!strncmp(line, "call ", 5)) {
			printf("ok %d\n", started_call(atoi(line + 5)));
		} else if (!strcmp(line, "mark")) {
			strcpy(data + 4096, "marked");
			puts("ok");
		} else if (!strcmp(line, "marked")) {
			printf("ok %s %s\n", data, data + 4096);
		} else if (!strcmp(line, "exe")) {
			char b[4];
			int e = open("/proc/self/exe", O_RDONLY);
			if (e < 0 || read(e, b, 4) != 4)
				printf("error %s\n", strerrorname_np(errno));
			else
				printf("ok %.3s\n", b + 1);
			if (e >= 0)
				close(e);
		} else if (!strcmp(line, "reexec")) {
			execv("/proc/self/exe", argv);
			printf("error %s\n", strerrorname_np(errno));
		} else if (!strncmp(line, "seal ", 5)) {
			int s = open(line + 5, O_RDONLY);
			sealed = mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE, s, 0);
			close(s);
			if (sealed == MAP_FAILED || syscall(462 /* mseal */, sealed, 1 << 20, 0L))
				printf("error %s\n", strerrorname_np(errno));
			else
				puts("ok");
		} else if (!strncmp(line, "sealed ", 7) && sealed) {
			printf("ok %d\n", sealed[4096 * (atoi(line + 7) & 255)]);
		} else if (!strncmp(line, "open ", 5)) {
			fd = open(line + 5, O_RDWR);
			printf(fd < 0 ? "error %s\n" : "ok\n", strerrorname_np(errno));
		} else if (!strcmp(line, "close")) {
			close(fd);
			puts("ok");
		} else if (!strcmp(line, "read")) {
			char b[101] = "";
			if (pread(fd, b, 100, 0) < 0)
				printf("error %s\n", strerrorname_np(errno));
			else
				printf("ok %s\n", b);
#ifndef STATIC
		} else if (!strncmp(line, "load ", 5)) {
			void *h = dlopen(line + 5, RTLD_NOW);
			lib = h ? (int (*)(int))dlsym(h, "started_call") : NULL;
			if (lib)
				puts("ok");
			else
				printf("error %s\n", dlerror());
		} else if (!strncmp(line, "lib ", 4) && lib) {
			printf("ok %d\n", lib(atoi(line + 4)));
#endif
		} else {
			printf("error unknown command %s\n", line);
		}
	}
	return 0;
}
#endif
