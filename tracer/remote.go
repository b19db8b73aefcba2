package tracer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// remote is code of ours in one stopped thread, that makes system calls there.
type remote struct {
	e       *engine
	p       *process
	t       *thread
	saved   registers // of the thread when it was stopped
	mask    uint64
	code    span
	region  span   // scratch region
	scratch uint64 // address of it
	stage   uint64 // address of the part where maps are prepared
	control int    // our end; -1 if it is not open
	data    int    // our end of the socket over which files are sent
	theirs  [2]int // the thread's ends
	calls   int
	unread  int       // replies that nobody has waited for
	told    time.Time // when it was given the last batch
	doing   doing
	placed  bool    // the thread's registers point into our code
	lender  *remote // has the page mapped that the code is in, nil: it is in slack
}

// bootTimeout bounds how long the code may take to get ready.
const bootTimeout = 2 * time.Second

var errTargetGone = errors.New("the process ended")

// injection says what the code in a thread will need.
type injection struct {
	scratch uint64 // bytes for the largest batch
	stage   uint64 // bytes for maps that are prepared
	// free makes room for descriptors, and gives the lowest numbers that are free, ascending: controlSockets
	// of them at least. It is asked when no other code will open or close some in between.
	free func() ([]int, error)
	// lines is the memory map, if it was read since all stand and nobody has changed it since
	lines []mapLine
}

// inject places code into t and runs it up to where it waits for a batch.
func (e *engine) inject(p *process, t *thread, in injection) (*remote, error) {
	if err := codeModel(&t.regs); err != nil {
		return nil, fmt.Errorf("thread %d (%s) cannot be used: %w", t.tid, p.comm, err)
	}
	if err := p.openMem(t); err != nil {
		if ended(t.tid) {
			return nil, errTargetGone
		}
		return nil, err
	}
	r := &remote{e: e, p: p, t: t, saved: t.regs, control: -1, data: -1}
	mask, err := getSigMask(t.tid)
	if err != nil {
		if errors.Is(err, syscall.ESRCH) {
			return nil, errTargetGone
		}
		return nil, fmt.Errorf("signal mask of thread %d: %w", t.tid, err)
	}
	r.mask = mask
	lines := in.lines
	if lines == nil {
		if lines, err = p.layout(t); err != nil {
			return nil, err
		}
	}
	if r.region, err = p.findRoom(lines, pageUp(in.scratch)+pageUp(in.stage)); err != nil {
		return nil, err
	}
	r.scratch, r.stage = r.region.start, r.region.start+pageUp(in.scratch)
	r.code, err = e.findSlack(p, t, lines, uint64(len(parasiteCode)))
	if errors.Is(err, errNoSlack) {
		none := err
		if r.code, err = e.borrowPage(r, lines); errors.Is(err, errNoSlack) {
			err = none
		}
	}
	if err != nil {
		return nil, err
	}
	e.remotes = append(e.remotes, r)
	free, err := r.place(in)
	if err != nil {
		if ferr := r.finish(); ferr != nil && !errors.Is(ferr, errTargetGone) {
			err = fmt.Errorf("%w; and: %w", err, ferr)
		}
		return nil, err
	}
	if err := r.boot(free); err != nil {
		if ended(t.tid) {
			err = errTargetGone
		}
		if ferr := r.finish(); ferr != nil && !errors.Is(ferr, errTargetGone) {
			err = fmt.Errorf("%w; and thread %d was not restored: %w", err, t.tid, ferr)
		}
		return nil, err
	}
	return r, nil
}

// place writes the code to its place, and returns the lowest descriptor numbers that are free.
func (r *remote) place(in injection) (free []int, err error) {
	p, t := r.p, r.t
	for _, o := range r.e.remotes { // code that is in already closes its copies of our ends, which may be in the same table
		if o != r {
			_ = o.drain() // what is wrong with it shows when its turn comes
		}
	}
	if free, err = in.free(); err != nil {
		return nil, err
	}
	conf := &paraConfig{tid: t.tid, regs: t.regs, mask: r.mask, scratch: r.region}
	if _, _, in := inSyscall(&t.regs); !in {
		conf.abortIP = rseqAbort(t.tid, pc(&t.regs), p.mem)
	}
	conf.limit, conf.raised = p.limit, p.raised
	image, err := paraImage(conf)
	if err != nil {
		if ended(t.tid) {
			return nil, errTargetGone
		}
		return nil, fmt.Errorf("thread %d (%s) cannot be used: %w", t.tid, p.comm, err)
	}
	if _, err := p.mem.WriteAt(image, int64(r.code.start)); err != nil {
		if ended(t.tid) {
			return nil, errTargetGone
		}
		return nil, fmt.Errorf("write code into process %d (%s) at %#x: %w", p.pid, p.comm, r.code.start, err)
	}
	return free, nil
}

// boot lets the thread run the code. Where it can, it opens two pairs of sockets
// at the lowest free numbers, and says so over the first.
func (r *remote) boot(free []int) error {
	tid := r.t.tid
	regs := startRegs(r.saved, r.code.start+paraHeader)
	// first the registers, then the mask: the code puts back the mask it was
	// given, so that at no point our death leaves the signals blocked
	if err := setRegs(tid, &regs); err != nil {
		return r.ptraceError("set registers", err)
	}
	r.placed = true
	if err := setSigMask(tid, ^uint64(0)); err != nil {
		return r.ptraceError("block signals", err)
	}
	r.t.stopped = false
	if err := cont(unix.PTRACE_CONT, tid, 0); err != nil {
		return err
	}
	g := getter{pid: r.p.pid, tid: tid, pidfd: r.p.pidfd, own: -1}
	defer g.close()
	if kcmp(r.p.pid, tid, kcmpFiles, 0, 0) == 0 {
		g.tid = r.p.pid // the leader's table: needs no PIDFD_THREAD
	}
	if len(free) < controlSockets {
		return fmt.Errorf("thread %d (%s) has %d free descriptor numbers, %d are needed", tid, r.p.comm, len(free), controlSockets)
	}
	if err := r.meet(&g, free[0]); err != nil {
		return err
	}
	if _, err := r.reply(); err != nil {
		return err
	}
	return r.connect(&g)
}

// meet waits until the code has opened its control sockets, and takes ours.
func (r *remote) meet(g *getter, fd int) (err error) {
	for w := (wait{pulse: r.e.pulse}); ; w.rest() {
		if r.control, err = g.get(fd); err == nil {
			return r.ours(r.control)
		}
		r.control = -1
		if !errors.Is(err, syscall.EBADF) {
			if gone(err) {
				return errTargetGone
			}
			return err
		}
		if err := r.unstick(); err != nil {
			return err
		}
		if w.took() > bootTimeout || w.long() && r.failed() {
			return fmt.Errorf("thread %d (%s) could not map %d bytes or open two pairs of sockets: out of memory or descriptors", r.t.tid, r.p.comm, r.region.end-r.region.start)
		}
	}
}

// failed reports that the code is at its end, or beyond it, by what a system call
// shows that the thread sleeps in.
func (r *remote) failed() bool {
	s, ok := sleepsIn(r.t.tid)
	return ok && (!r.code.contains(s.pc) || s.pc >= r.code.start+paraLast())
}

func (s span) contains(a uint64) bool { return a >= s.start && a < s.end }

// passSignal says which signal to let in at a stop that was not asked for. The
// mask holds back all but SIGSTOP, which is kept for later. Others come when the
// code gives the thread back by itself, and are the thread's.
func (r *remote) passSignal(ws syscall.WaitStatus) syscall.Signal {
	if !ws.Stopped() || eventStop(ws) || syscallStop(ws) {
		return 0
	}
	if ws.StopSignal() == syscall.SIGSTOP {
		r.t.resendStop = true
		return 0
	}
	return ws.StopSignal()
}

// wait waits for the thread to stop or to end.
func (r *remote) wait() (syscall.WaitStatus, error) {
	late := lateness{r: r}
	for w := (wait{pulse: r.e.pulse}); ; w.rest() {
		ws, none, err := waitThread(r.t.tid)
		if err != nil || !none && (ws.Exited() || ws.Signaled()) {
			r.t.gone, r.t.stopped = true, false
			return ws, errTargetGone
		}
		if !none {
			return ws, nil
		}
		long := w.long()
		if long && late.stuck(w.took()) {
			return ws, notStopping(r.t.tid, w.took())
		}
		if long && ended(r.t.tid) { // a leader is not reported before all its threads are
			r.t.gone, r.t.stopped = true, false
			return ws, errTargetGone
		}
	}
}

func (r *remote) ptraceError(what string, err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return errTargetGone
	}
	return fmt.Errorf("%s of thread %d (%s): %w", what, r.t.tid, r.p.comm, err)
}

// connect takes the sender's end of the second pair, and learns the numbers.
func (r *remote) connect(g *getter) error {
	var b [16]byte
	if _, err := r.p.mem.ReadAt(b[:], int64(r.scratch+scratchControl)); err != nil {
		return r.memError("read", err)
	}
	ends := [4]int{}
	for i := range ends {
		ends[i] = int(int32(binary.LittleEndian.Uint32(b[4*i:])))
	}
	r.theirs = [2]int{ends[1], ends[3]}
	var err error
	if r.data, err = g.get(ends[2]); err != nil {
		return err
	}
	if err := r.ours(r.data); err != nil {
		return err
	}
	// room for the files of all slots; SO_SNDBUFFORCE needs CAP_NET_ADMIN, and
	// without it the default is enough for some 40,000 files
	_ = unix.SetsockoptInt(r.data, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
	// a batch of nothing: the code closes its copies of our ends, and from then on sees it when we die
	if err := r.order(0, 0); err != nil {
		return err
	}
	r.unread++
	return nil
}

// interrupt stops the thread as PTRACE_INTERRUPT does, from running or from a
// stop at a system call.
func (r *remote) interrupt() error {
	tid := r.t.tid
	if err := ptraceValue(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil {
		return r.ptraceError("interrupt", err)
	}
	if r.t.stopped {
		r.t.stopped = false
		if err := cont(unix.PTRACE_CONT, tid, 0); err != nil {
			return err
		}
	}
	for {
		ws, err := r.wait()
		if err != nil {
			return err
		}
		if eventStop(ws) {
			r.t.stopped = true
			return nil
		}
		if err := cont(unix.PTRACE_CONT, tid, r.passSignal(ws)); err != nil {
			return err
		}
	}
}

// pageSize is 4, 16 or 64 KiB.
var pageSize = uint64(os.Getpagesize())

func pageUp(n uint64) uint64 { return (n + pageSize - 1) &^ (pageSize - 1) }
