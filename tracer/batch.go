package tracer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// call is one system call of a batch.
type call struct {
	nr      uint64
	args    [6]uint64
	mayFail bool // go on with the batch after an error
	ret     int64
}

func (c *call) errno() syscall.Errno {
	if c.ret < 0 && c.ret >= -4095 {
		return syscall.Errno(-c.ret)
	}
	return 0
}

// batch is a list of system calls with the memory they refer to.
type batch struct {
	r     *remote
	data  []byte
	calls []call
}

func (r *remote) batch() *batch { return &batch{r: r} }

// bytes puts b into the memory of the batch, and returns its address there.
func (b *batch) bytes(p []byte) uint64 {
	for len(b.data)%16 != 0 {
		b.data = append(b.data, 0)
	}
	at := b.r.scratch + scratchHeader + uint64(len(b.data))
	b.data = append(b.data, p...)
	return at
}

func (b *batch) add(nr uintptr, args ...uint64) *call {
	c := call{nr: uint64(nr)}
	copy(c.args[:], args)
	b.calls = append(b.calls, c)
	return &b.calls[len(b.calls)-1]
}

// callError is a system call that failed in the target and ended its batch.
type callError struct {
	index int
	call  call
	comm  string
	tid   int
}

func (e *callError) Error() string {
	name := callNames[e.call.nr]
	if name == "" {
		name = fmt.Sprintf("system call %d", e.call.nr)
	}
	return fmt.Sprintf("%s in thread %d (%s): %v", name, e.tid, e.comm, e.call.errno())
}

func (e *callError) Unwrap() error { return e.call.errno() }

var callNames = map[uint64]string{
	unix.SYS_RECVMSG: "recvmsg", unix.SYS_DUP3: "dup3", unix.SYS_CLOSE_RANGE: "close_range", unix.SYS_FCNTL: "fcntl", unix.SYS_MMAP: "mmap",
	unix.SYS_MREMAP: "mremap", unix.SYS_FCHDIR: "fchdir", unix.SYS_CHROOT: "chroot", unix.SYS_MLOCK2: "mlock2", unix.SYS_MADVISE: "madvise",
}

const callBytes = 64

// run executes the batch in the thread. The calls that ran have their results
// set also after an error.
func (b *batch) run() error {
	r := b.r
	if len(b.calls) == 0 {
		return nil
	}
	for len(b.data)%16 != 0 {
		b.data = append(b.data, 0)
	}
	table := uint64(scratchHeader + len(b.data))
	image := append(slices.Clone(b.data), make([]byte, callBytes*len(b.calls))...)
	calls := image[len(b.data):]
	for i, c := range b.calls {
		w := calls[callBytes*i:]
		nr := c.nr
		if c.mayFail {
			nr |= 1 << 32
		}
		binary.LittleEndian.PutUint64(w, nr)
		for j, a := range c.args {
			binary.LittleEndian.PutUint64(w[8+8*j:], a)
		}
		if c.nr != callStore {
			binary.LittleEndian.PutUint64(w[callBytes-8:], notMade)
		}
	}
	if table+uint64(len(calls)) > r.stage-r.scratch {
		return fmt.Errorf("batch of %d bytes for a region of %d", len(image), r.stage-r.scratch)
	}
	if _, err := r.p.mem.WriteAt(image, int64(r.scratch+scratchHeader)); err != nil {
		return r.memError("write", err)
	}
	if err := r.order(len(b.calls), table); err != nil {
		return err
	}
	left, err := r.reply()
	if err != nil {
		return err
	}
	if left > len(b.calls) {
		return r.meddled(fmt.Sprintf("it left %d of %d calls", left, len(b.calls)))
	}
	if _, err := r.p.mem.ReadAt(image, int64(r.scratch+scratchHeader)); err != nil {
		return r.memError("read", err)
	}
	done := b.results(image, left)
	r.calls += done
	if left > 0 {
		return &callError{index: done - 1, call: b.calls[done-1], comm: r.p.comm, tid: r.t.tid}
	}
	return nil
}

// results takes in what a run has left in memory, where left of the calls were not done, and tells how many were begun.
func (b *batch) results(image []byte, left int) (begun int) {
	begun = len(b.calls) - left
	if left > 0 {
		begun++ // the one that failed
	}
	calls := image[copy(b.data, image):]
	for i := range b.calls[:begun] {
		b.calls[i].ret = int64(binary.LittleEndian.Uint64(calls[callBytes*i+56:]))
	}
	return begun
}

// order tells the code to make n calls, whose table is at an offset of the scratch region.
func (r *remote) order(n int, table uint64) error {
	var msg [16]byte
	binary.LittleEndian.PutUint64(msg[:], uint64(n))
	binary.LittleEndian.PutUint64(msg[8:], table)
	r.doing = doing{calls: n, table: r.scratch + table}
	if err := r.tell(msg[:]); err != nil {
		return r.lostContact(err)
	}
	return nil
}

// frozenLooks is after how many looks around it is looked whether the process has been frozen.
const frozenLooks = 10

// reply waits for what a batch left undone: not negative.
func (r *remote) reply() (left int, err error) {
	if err := r.drain(); err != nil {
		return 0, err
	}
	return r.message()
}

// drain waits for the replies that nobody has waited for: what the code was told to do is done then.
func (r *remote) drain() error {
	for r.unread > 0 {
		if _, err := r.message(); err != nil {
			return err
		}
		r.unread--
	}
	return nil
}

func (r *remote) message() (left int, err error) {
	var msg [8]byte
	w, late := wait{answer: true, socket: r.control, pulse: r.e.pulse}, lateness{r: r}
	for looks := 0; ; w.rest() {
		n, _, err := unix.Recvfrom(r.control, msg[:], unix.MSG_DONTWAIT)
		if err == nil && n == len(msg) {
			return r.leftOf(msg[:])
		}
		if !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR) {
			return 0, r.lostContact(err)
		}
		if !w.long() {
			continue
		}
		looks++
		if took := w.took(); late.stuck(took) {
			return 0, fmt.Errorf("thread %d (%s) did not finish its calls within %v: a file system does not answer when a file is closed, or is very slow", r.t.tid, r.p.comm, took.Round(time.Second))
		}
		if looks%frozenLooks == 0 {
			if err := r.p.frozenNow(); err != nil {
				return 0, err
			}
		}
		if err := r.unstick(); err != nil {
			return 0, err
		}
		r.e.keepWaiting(r)
	}
}

// unstick lets the thread go on if a SIGSTOP, which no mask holds back, stopped it.
func (r *remote) unstick() error {
	ws, none, err := waitThread(r.t.tid)
	switch {
	case none:
		return nil
	case err != nil || ws.Exited() || ws.Signaled():
		r.t.gone, r.t.stopped = true, false
		return errTargetGone
	}
	return cont(unix.PTRACE_CONT, r.t.tid, r.passSignal(ws))
}

// dying reports that the thread is gone or on its way: its files are closed a
// moment before it shows.
func (r *remote) dying() bool {
	for range 50 {
		if r.t.gone || ended(r.t.tid) {
			r.t.gone, r.t.stopped = true, false
			return true
		}
		time.Sleep(2 * time.Millisecond)
	}
	return false
}

// ended reports that a thread runs no code any more.
func ended(tid int) bool {
	st, err := readStatus(tid)
	return err != nil && gone(err) || err == nil && (st.state == 'Z' || st.state == 'X')
}

// lostContact tells a process that ended from code that gave its thread back.
func (r *remote) lostContact(err error) error {
	if r.dying() {
		return errTargetGone
	}
	return fmt.Errorf("lost contact with the code in thread %d (%s), which gives its thread back after 3 s of silence (%v)", r.t.tid, r.p.comm, err)
}

func (r *remote) memError(what string, err error) error {
	if r.dying() {
		return errTargetGone
	}
	return fmt.Errorf("%s memory of process %d (%s): %w", what, r.p.pid, r.p.comm, err)
}

// send puts files into the queue of the data socket.
func (r *remote) send(files []int) error {
	if err := unix.Sendmsg(r.data, []byte{1}, unix.UnixRights(files...), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT); err != nil {
		return r.lostContact(fmt.Errorf("send %d files: %w", len(files), err))
	}
	return nil
}

// maxRights is how many files one message carries (SCM_MAX_FD is 253).
const maxRights = 250

// receive adds the call that takes the next message of n files from the data
// socket. The numbers go to control, an address in the target.
func (b *batch) receive(n int, flags, control uint64) {
	const iov, octet = 64, 80
	msg := make([]byte, 96) // struct msghdr, struct iovec, one byte
	base := b.bytes(msg)
	m := b.data[len(b.data)-len(msg):]
	le := binary.LittleEndian
	le.PutUint64(m[16:], base+iov)
	le.PutUint64(m[24:], 1)
	le.PutUint64(m[32:], control)
	le.PutUint64(m[40:], uint64(unix.CmsgSpace(4*n)))
	le.PutUint64(m[iov:], base+octet)
	le.PutUint64(m[iov+8:], 1)
	b.add(unix.SYS_RECVMSG, uint64(b.r.theirs[1]), base, flags|unix.MSG_DONTWAIT)
}

// control makes room for the control message of n files.
func (b *batch) control(n int) uint64 { return b.bytes(make([]byte, unix.CmsgSpace(4*n))) }

// temps sends files, at most maxRights, and returns their temporary numbers in
// the target. Until closeTemps runs, the code closes them when it gives the
// thread back.
func (r *remote) temps(files []int) ([]int, error) {
	if len(files) == 0 {
		return nil, nil
	}
	if err := r.send(files); err != nil {
		return nil, err
	}
	b := r.batch()
	b.receive(len(files), unix.MSG_CMSG_CLOEXEC, r.scratch+scratchTemps)
	if err := b.run(); err != nil {
		return nil, err
	}
	buf := make([]byte, unix.CmsgSpace(4*len(files)))
	if _, err := r.p.mem.ReadAt(buf, int64(r.scratch+scratchTemps)); err != nil {
		return nil, r.memError("read", err)
	}
	fds, err := received(buf, len(files))
	if err != nil {
		return nil, fmt.Errorf("process %d (%s): %w", r.p.pid, r.p.comm, err)
	}
	return fds, nil
}

// received reads the control message (cmsg(3)) of n files that the target has received.
func received(control []byte, n int) (fds []int, err error) {
	head := unix.CmsgLen(0)
	if size := binary.LittleEndian.Uint64(control); size != uint64(unix.CmsgLen(4*n)) {
		return nil, fmt.Errorf("it has not received %d files: the message about them has %d bytes", n, size)
	}
	for i := range n {
		fd := binary.LittleEndian.Uint32(control[head+4*i:])
		if fd > math.MaxInt32 {
			return nil, fmt.Errorf("it has received a file as descriptor %d", fd)
		}
		fds = append(fds, int(fd))
	}
	return fds, nil
}

// closeTemps adds the calls that close temporary descriptors.
func (b *batch) closeTemps(fds []int) {
	if len(fds) == 0 {
		return
	}
	closeRuns(b, fds)
	b.add(callStore, b.r.scratch+scratchTemps, 0)
}
