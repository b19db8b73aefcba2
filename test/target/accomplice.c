// A process whose descriptor table another one changes all the time, which is in
// a mount namespace of its own and so no part of the same container to faultgraft.
//
// Usage: accomplice DIR FILES. It opens files in DIR from descriptor 3 on, says
// "ready", and answers each line with "ok".
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void accomplice(pid_t parent, const char *dir, int files) {
  char name[4096];
  unsigned seed = 1;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent || unshare(CLONE_NEWNS) != 0)
    _exit(1);
  for (;;) {
    snprintf(name, sizeof name, "%s/%d", dir, rand_r(&seed) % files);
    int fd = open(name, O_RDWR);
    int at = 3 + rand_r(&seed) % (files + 12);
    switch (rand_r(&seed) % 3) {
    case 0:
      dup2(fd, at);
      break;
    case 1:
      close(at);
      break;
    case 2:
      fcntl(fd, F_DUPFD, at);
    }
    if (fd > 2)
      close(fd);
  }
}

int main(int argc, char **argv) {
  char name[4096], line[256];
  int files = argc > 2 ? atoi(argv[2]) : 0;
  if (files <= 0)
    return 1;
  for (int i = 0; i < files; i++) {
    snprintf(name, sizeof name, "%s/%d", argv[1], i);
    if (open(name, O_RDWR | O_CREAT, 0644) < 0)
      return 1;
  }
  pid_t self = getpid();
  // not fork(3): the table is shared, the memory is not
  switch (syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0)) {
  case -1:
    return 1;
  case 0:
    accomplice(self, argv[1], files);
  }
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    puts("ok");
    fflush(stdout);
  }
  return 0;
}
