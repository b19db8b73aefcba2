// Code that runs inside a thread of a target, as amd64.S does; see there for what
// it does and for the layout of the scratch region.
//
// Its end is rt_sigreturn with a frame that the tracer wrote behind the code: a
// jump needs a register here, and only the kernel can set all of them, program
// counter and signal mask in one step. The frame is read only, it may stand in
// an r-x page.
//
// x19 scratch region, w20 control socket, x21 and x22 the batch.

.set SYS_close, 57
.set SYS_ppoll, 73
.set SYS_rt_sigprocmask, 135
.set SYS_rt_sigreturn, 139
.set SYS_socketpair, 199
.set SYS_sendto, 206
.set SYS_recvfrom, 207
.set SYS_setsockopt, 208
.set SYS_munmap, 215
.set SYS_mmap, 222
.set SYS_prlimit64, 261

image:
  .ascii "FGRAFT\1\0"         // by which a later tracer knows what a dead one left,
  .quad end - image         // and how long it is
start:
  ldr x0, d_limited
  cbz x0, 1f
  adr x2, d_raised          // room for our descriptors: RLIMIT_NOFILE
  bl limit
1:// scratch region where the tracer found room; MAP_PRIVATE|MAP_ANONYMOUS|
  // MAP_NORESERVE|MAP_FIXED_NOREPLACE (Linux 4.17)
  ldr x0, d_addr
  ldr x1, d_size
  mov x2, #3
  mov x3, #0x4022
  movk x3, #0x10, lsl #16
  mov x4, #-1
  mov x5, #0
  mov x8, #SYS_mmap
  svc #0
  cmn x0, #1, lsl #12
  b.hi nomap
  mov x19, x0
  // block every signal: only needed if the tracer died before it did so itself
  mov x0, #2
  adr x1, d_full
  mov x2, #0
  mov x3, #8
  mov x8, #SYS_rt_sigprocmask
  svc #0
  mov x0, #-1
  stp x0, x0, [x19, #8]
  // two pairs of AF_UNIX, SOCK_SEQPACKET|SOCK_CLOEXEC
  add x21, x19, #8
1:mov x0, #1
  mov w1, #5
  movk w1, #8, lsl #16
  mov x2, #0
  mov x3, x21
  mov x8, #SYS_socketpair
  svc #0
  cbnz w0, fini
  add x21, x21, #8
  add x0, x19, #24
  cmp x21, x0
  b.lo 1b
  ldrsw x20, [x19, #12]
  // SO_RCVTIMEO 3 s
  mov x0, #3
  stp x0, xzr, [x19, #32]
  mov x0, x20
  mov x1, #1
  mov x2, #20
  add x3, x19, #32
  mov x4, #16
  mov x8, #SYS_setsockopt
  svc #0
  mov x22, #0               // ready
reply:
  str x22, [x19, #48]       // calls left: 0 is all done
  mov x0, x20
  add x1, x19, #48
  mov x2, #8
  mov x3, #0x4000           // MSG_NOSIGNAL
  mov x4, #0
  mov x5, #0
  mov x8, #SYS_sendto
  svc #0
loop:
  mov x0, x20
  add x1, x19, #64
  mov x2, #16
  mov x3, #0
  mov x4, #0
  mov x5, #0
  mov x8, #SYS_recvfrom
  svc #0
  cmn x0, #4                // EINTR: PTRACE_INTERRUPT
  b.eq loop
  cmp x0, #16
  b.ne fini
  // the sender has its ends now: close ours, so that its death is seen
  bl close_senders
  ldp x22, x21, [x19, #64]
  add x21, x21, x19
exec:
  cbz x22, reply
  ldr w8, [x21]
  ldp x0, x1, [x21, #8]
  cmn w8, #1                // no system call: a store
  b.ne 2f
  str x1, [x0]
  b 1f
2:ldp x2, x3, [x21, #24]
  ldp x4, x5, [x21, #40]
  svc #0
  str x0, [x21, #56]
  cmn x0, #1, lsl #12
  b.ls 1f
  ldr w0, [x21, #4]         // an error ends the batch unless the call says go on
  cbz w0, reply
1:add x21, x21, #64
  sub x22, x22, #1
  b exec
fini:
  ldr x21, [x19, #128]      // cmsg_len: a header of 16 bytes, then the numbers
  add x22, x19, #128
  add x21, x21, x22
  add x22, x22, #16
2:cmp x22, x21
  b.hs 3f
  ldr w0, [x22], #4
  mov x8, #SYS_close
  svc #0
  b 2b
3:bl close_senders
  ldr w20, [x19, #12]
  ldr w21, [x19, #20]
  ldr x0, d_addr
  ldr x1, d_size
  mov x8, #SYS_munmap
  svc #0
  b 1f
nomap:
  mov w20, #-1              // there is nothing to close and to unmap
  mov w21, #-1
1:mov w0, w21
  mov x8, #SYS_close
  svc #0
  ldr x0, d_limited
  cbz x0, 1f
  adr x2, d_limit           // put RLIMIT_NOFILE back
  bl limit
1:mov w0, w20               // the control socket last: by its end the tracer knows
  mov x8, #SYS_close
  svc #0
last:
  // a tracer that lives stops the thread in this sleep and restores it itself;
  // ppoll, because it has no restart block: see amd64.S
  mov x0, #0
  mov x1, #0
  adr x2, d_park
  mov x3, #0
  mov x8, #SYS_ppoll
  svc #0
back:
  adr x0, frame - 144
  mov sp, x0
  mov x8, #SYS_rt_sigreturn
  svc #0
probe:
  // entered by the tracer with the first argument of the system call in which the
  // thread was stopped, for the kernel to take it down (orig_x0)
  svc #0
  b back

// close_senders: 8 and 16 unless they are closed; -1 fails harmlessly
close_senders:
  ldr w0, [x19, #24]
  cbnz w0, 1f
  mov w0, #1
  str w0, [x19, #24]
  ldr w0, [x19, #8]
  mov x8, #SYS_close
  svc #0
  ldr w0, [x19, #16]
  svc #0
1:ret

// limit: RLIMIT_NOFILE from x2
limit:
  mov x0, #0
  mov x1, #7
  mov x3, #0
  mov x8, #SYS_prlimit64
  svc #0
  ret

.balign 16
// The frame of rt_sigreturn (struct rt_sigframe, arch/arm64/kernel/signal.c) begins
// 144 bytes before: siginfo, flags and link are not read. The words from d_fini on
// stand in its unused bytes. The order is that of the constants in parasite_arm64.go.
frame:
           .quad 0, 0x100, 0 // uc_stack with a mode that sigaltstack(2) refuses: it stays
           .quad 0          // uc_sigmask
d_fini:    .quad fini - image
d_last:    .quad last - image
d_probe:   .quad probe - image
d_full:    .quad -1
d_park:    .quad 0, 100000000 // 0.1 s
d_addr:    .quad 0
d_size:    .quad 0
d_limited: .quad 0
d_limit:   .quad 0, 0
d_raised:  .quad 0, 0
           .fill 3, 8, 0
           .fill 34, 8, 0   // fault_address, x0 … x30, sp, pc
           .quad 0, 0       // pstate, pad
           .long 0x46508001, 528 // struct fpsimd_context: fpsr, fpcr, v0 … v31
           .fill 65, 8, 0
           .quad 0          // no further record
end:
