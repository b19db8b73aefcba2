# Code that runs inside a thread of a target: it serves batches of system calls
# that arrive over a socket, and gives the thread back by itself, registers,
# flags and signal mask as they were, when the socket ends or is silent for 3 s.
# That is why the tracer may die at any moment.
#
# Position independent, no stack (the red zone and a full stack stay as they
# are), no writes to itself (it lives in an r-x page). Built into
# ../parasite_amd64.bin by `go generate`; a test compares.
#
# r13 scratch region, r14 control socket, rbx and r12 the batch.
# Scratch region: 8 control pair, 16 data pair (two ints each), 24 set once the
# senders' ends are closed, 32 timeval, 48 reply, 64 command {count, table offset},
# 128 the message with temporary descriptors.
#
# A ptrace stop costs more than all that is done here: so the first reply tells
# that the code is ready, the end of the control socket that it has cleaned up,
# and no other stop is needed than the one in which the thread is given back.

.set SYS_close, 3
.set SYS_mmap, 9
.set SYS_munmap, 11
.set SYS_rt_sigprocmask, 14
.set SYS_sendto, 44
.set SYS_recvfrom, 45
.set SYS_socketpair, 53
.set SYS_setsockopt, 54
.set SYS_ppoll, 271
.set SYS_prlimit64, 302

image:
  .ascii "FGRAFT\1\0"         # by which a later tracer knows what a dead one left,
  .quad end - image         # and how long it is
start:
  cmpq $0, d_limited(%rip)
  je 1f
  mov $SYS_prlimit64, %eax # room for our descriptors: RLIMIT_NOFILE
  xor %edi, %edi
  mov $7, %esi
  lea d_raised(%rip), %rdx
  xor %r10d, %r10d
  syscall
1:# scratch region where the tracer found room; MAP_PRIVATE|MAP_ANONYMOUS|
  # MAP_NORESERVE|MAP_FIXED_NOREPLACE (Linux 4.17)
  mov $SYS_mmap, %eax
  mov d_addr(%rip), %rdi
  mov d_size(%rip), %rsi
  mov $3, %edx
  mov $0x104022, %r10d
  or $-1, %r8             # short for mov; it is used as -1 below, too
  xor %r9d, %r9d
  syscall
  cmp $-4096, %rax
  ja nomap
  mov %rax, %r13
  mov %r8, 8(%r13)
  mov %r8, 16(%r13)
  # block every signal: only needed if the tracer died before it did so itself
  mov $SYS_rt_sigprocmask, %eax
  mov $2, %edi
  lea 8(%r13), %rsi
  xor %edx, %edx
  mov $8, %r10d
  syscall
  # two pairs of AF_UNIX, SOCK_SEQPACKET|SOCK_CLOEXEC
  lea 8(%r13), %r12
1:mov $SYS_socketpair, %eax
  mov $1, %edi
  mov $0x80005, %esi
  xor %edx, %edx
  mov %r12, %r10
  syscall
  test %eax, %eax
  jnz fini
  add $8, %r12
  lea 24(%r13), %rax
  cmp %rax, %r12
  jb 1b
  movslq 12(%r13), %r14
  # SO_RCVTIMEO 3 s
  movq $3, 32(%r13)
  movq $0, 40(%r13)
  mov $SYS_setsockopt, %eax
  mov %r14d, %edi
  mov $1, %esi
  mov $20, %edx
  lea 32(%r13), %r10
  mov $16, %r8d
  syscall
  xor %r12d, %r12d        # ready
  jmp reply
loop:
  mov $SYS_recvfrom, %eax
  mov %r14d, %edi
  lea 64(%r13), %rsi
  mov $16, %edx
  xor %r10d, %r10d
  xor %r8d, %r8d
  xor %r9d, %r9d
  syscall
  cmp $-4, %rax           # EINTR: PTRACE_INTERRUPT
  je loop
  cmp $16, %rax
  jne fini
  # the sender has its ends now: close ours, so that its death is seen
  cmpl $0, 24(%r13)
  jne 1f
  movl $1, 24(%r13)
  mov $SYS_close, %eax
  mov 8(%r13), %edi
  syscall
  mov $SYS_close, %eax
  mov 16(%r13), %edi
  syscall
1:mov 64(%r13), %r12
  mov 72(%r13), %rbx
  add %r13, %rbx
exec:
  test %r12, %r12
  jz reply
  mov (%rbx), %eax
  mov 8(%rbx), %rdi
  mov 16(%rbx), %rsi
  cmp $-1, %eax           # no system call: a store
  jne 2f
  mov %rsi, (%rdi)
  jmp 1f
2:
  mov 24(%rbx), %rdx
  mov 32(%rbx), %r10
  mov 40(%rbx), %r8
  mov 48(%rbx), %r9
  syscall
  mov %rax, 56(%rbx)
  cmp $-4096, %rax
  jbe 1f
  cmpl $0, 4(%rbx)        # an error ends the batch unless the call says go on
  je reply
1:add $64, %rbx
  dec %r12
  jmp exec
reply:
  mov %r12, 48(%r13)      # calls left: 0 is all done
  mov $SYS_sendto, %eax
  mov %r14d, %edi
  lea 48(%r13), %rsi
  mov $8, %edx
  mov $0x4000, %r10d      # MSG_NOSIGNAL
  xor %r8d, %r8d
  xor %r9d, %r9d
  syscall
  jmp loop
fini:
  mov 128(%r13), %r12     # cmsg_len: a header of 16 bytes, then the numbers
  lea 128(%r13, %r12), %r12
  lea 144(%r13), %rbx
2:cmp %r12, %rbx
  jae 3f
  mov $SYS_close, %eax
  mov (%rbx), %edi
  syscall
  add $4, %rbx
  jmp 2b
3:# sockets: 8 and 16 only if they were not closed above; -1 fails harmlessly
  cmpl $0, 24(%r13)
  jne 1f
  mov $SYS_close, %eax
  mov 8(%r13), %edi
  syscall
  mov $SYS_close, %eax
  mov 16(%r13), %edi
  syscall
1:mov 20(%r13), %r12d
  mov 12(%r13), %r14d
  jmp 2f
nomap:
  or $-1, %r12d           # there is nothing to close and to unmap
  or $-1, %r14d
  jmp 1f
2:mov $SYS_munmap, %eax
  mov d_addr(%rip), %rdi
  mov d_size(%rip), %rsi
  syscall
1:mov $SYS_close, %eax
  mov %r12d, %edi
  syscall
  cmpq $0, d_limited(%rip)
  je 1f
  mov $SYS_prlimit64, %eax # put RLIMIT_NOFILE back
  xor %edi, %edi
  mov $7, %esi
  lea d_limit(%rip), %rdx
  xor %r10d, %r10d
  syscall
1:mov $SYS_close, %eax    # the control socket last: by its end the tracer knows
  mov %r14d, %edi
  syscall
last:
  # a tracer that lives stops the thread in this sleep and restores it itself;
  # ppoll, because it has no restart block (fs/select.c): that of the call which
  # the thread was stopped in must stay
  mov $SYS_ppoll, %eax
  xor %edi, %edi
  xor %esi, %esi
  lea d_park(%rip), %rdx
  xor %r10d, %r10d
  syscall
  mov $SYS_rt_sigprocmask, %eax
  mov $2, %edi
  lea d_mask(%rip), %rsi
  xor %edx, %edx
  mov $8, %r10d
  syscall
  mov d_rbx(%rip), %rbx
  mov d_rcx(%rip), %rcx
  mov d_rdx(%rip), %rdx
  mov d_rsi(%rip), %rsi
  mov d_rdi(%rip), %rdi
  mov d_r8(%rip), %r8
  mov d_r9(%rip), %r9
  mov d_r10(%rip), %r10
  mov d_r11(%rip), %r11
  mov d_r12(%rip), %r12
  mov d_r13(%rip), %r13
  mov d_r14(%rip), %r14
  # flags without a stack: DF by std, OF by an add, the rest by sahf
  cmpb $0, d_flags+2(%rip)
  je 1f
  std
1:mov d_flags(%rip), %ax  # al 0 or 1 for OF, ah SF ZF AF PF CF
  add $0x7f, %al
  sahf
  mov d_rax(%rip), %rax
  jmp *d_rip(%rip)

.balign 8
d_park:    .quad 0, 100000000 # 0.1 s
# filled in by the tracer; the order is that of paraWords in parasite_amd64.go
d_words:
d_fini:    .quad fini - image
d_last:    .quad last - image
d_addr:    .quad 0
d_size:    .quad 0
d_mask:    .quad 0
d_limited: .quad 0
d_limit:   .quad 0, 0
d_raised:  .quad 0, 0
d_flags:   .quad 0
d_rip:     .quad 0
d_rax:     .quad 0
d_rbx:     .quad 0
d_rcx:     .quad 0
d_rdx:     .quad 0
d_rsi:     .quad 0
d_rdi:     .quad 0
d_r8:      .quad 0
d_r9:      .quad 0
d_r10:     .quad 0
d_r11:     .quad 0
d_r12:     .quad 0
d_r13:     .quad 0
d_r14:     .quad 0
end:
