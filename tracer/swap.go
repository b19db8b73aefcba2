package tracer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultDeadline is how long threads may take to stop if Options says nothing.
const DefaultDeadline = 2 * time.Second

// Swap replaces files in running processes, as o says. Either everything that
// can be swapped is, or the error says why not, and that nothing was changed.
// After an error the report tells what is known so far. If the error is an
// ErrPartly, its Swapped lists what has new files: processes that were let go
// before the one that failed. The caller swaps these back, or tries again; the
// same if it is an ErrUnfinished, of which nothing is known.
//
// The functions of o are called one at a time, on OS threads of their own; of Settle two at a time. While processes stand
// they have until the deadline; one that has not returned by then is given up, and may come to its end later.
// None of the processes may be a child that this process waits for meanwhile:
// wait(2) in another thread would take the stops away (ptrace(2)).
func Swap(ctx context.Context, o Options) (*Report, error) {
	if err := archCheck(); err != nil {
		return nil, err
	}
	if o.Replace != nil && o.ReplaceAll == nil {
		o.ReplaceAll = o.oneByOne
	}
	if o.Processes == nil || o.Match == nil || o.ReplaceAll == nil {
		return nil, errors.New("swap: Processes, Match and Replace must be set")
	}
	if o.Deadline == 0 {
		o.Deadline = DefaultDeadline
	}
	if self := os.Getpid(); kcmp(self, self, kcmpVM, 0, 0) != 0 {
		return nil, errors.New("swap: kcmp(2) does not work here: the kernel needs CONFIG_KCMP, a container's seccomp profile must allow it")
	}
	x := &transaction{ctx: ctx, o: &o, known: map[int]*process{}, found: map[int]*found{}, given: map[int][]givenDir{}}
	x.pulse.step.Store(new(string))
	x.asides.late = make(chan struct{}, 1)
	if o.Progress == nil {
		o.Progress = func() {}
	}
	x.s = newScanner(&o)
	x.e = x.newEngine()
	var err error
	onOwnThread(func() {
		// sleeps of microseconds would take 50 more (PR_SET_TIMERSLACK(2const)); the thread ends with the swap.
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
		err = x.run()
	})
	if !x.asides.hung { // else its files are in use, until this process ends
		x.s.close()
	}
	x.waitDetached()
	for _, p := range x.known {
		p.close()
	}
	return &x.report, err
}

// ErrPartly is what a swap fails with after other processes have been let go with
// their new files.
var ErrPartly = errors.New("other processes have their new files already")

// ErrUnfinished is what a swap fails with that could not put everything back, or not let every
// thread go: whatever was to be exchanged may have its old file or its new one, and may
// still change. It happens to a process that is frozen by its cgroup meanwhile. Whoever
// made the new files has to keep them good until all are known to be back.
var ErrUnfinished = errors.New("it is not known what has its new file")

// onOwnThread runs f on an OS thread that ends afterwards. ptrace(2) ties a
// target to the thread that seized it, and the end of that thread lets go of all
// targets, also of one that never stopped and so cannot be detached.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() == unix.Getpid() {
			// the runtime keeps the main thread for ever; hold it, so that the next try gets another
			inner := make(chan struct{})
			go func() { defer close(inner); onOwnThread(f) }()
			<-inner
			runtime.UnlockOSThread()
			close(done)
			return
		}
		defer close(done)
		f()
	}()
	<-done
}

// waitDetached waits until threads that never stopped are let go by the end of
// the tracing thread.
func (x *transaction) waitDetached() {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		held := false
		for _, tid := range x.leftTraced() {
			if st, err := readStatus(tid); err == nil && st.tracer != 0 && st.state != 'Z' && st.state != 'X' {
				held = true
			}
		}
		if !held {
			return
		}
	}
}

// leftTraced lists the threads that could not be detached.
func (x *transaction) leftTraced() []int {
	r := x.undetached
	for _, p := range x.e.order {
		for _, t := range p.order {
			if t.left && !t.gone {
				r = append(r, t.tid)
			}
		}
	}
	return r
}

// transaction is one swap.
type transaction struct {
	ctx        context.Context
	o          *Options
	s          *scanner
	lent       *lenders         // nil: no priority is lent
	e          *engine          // of the group that is being stopped
	known      map[int]*process // candidates by PID
	found      map[int]*found   // what the last look while it ran saw of a process
	rolling    bool             // the groups are stopped one after another
	frozen     freezer
	deadline   time.Time
	resumed    time.Time          // when the last group was let go
	stopping   time.Time          // since when the present group is being stopped
	jobs       []*job             // of the present group
	begun      atomic.Int32       // how far Stopped has come
	done       bool               // a group was let go with new files
	given      map[int][]givenDir // by PID, of groups that were let go
	left       []ObjectReport     // of processes that run: what is not swapped
	undetached []int              // threads of groups that were let go, see thread.left
	asides     asides
	settling   atomic.Pointer[progress]
	pulse      pulse
	report     Report
}

func (x *transaction) step(name string) error {
	x.pulse.beat()
	x.pulse.step.Store(&name)
	if err := x.alive(); err != nil {
		return err
	}
	if x.o.Step != nil {
		if err := x.o.Step(name); err != nil {
			return fmt.Errorf("at step %s: %w", name, err)
		}
	}
	return nil
}

func (x *transaction) sortedKnown() []*process {
	var r []*process
	for _, p := range x.known {
		r = append(r, p)
	}
	slices.SortFunc(r, func(a, b *process) int { return a.pid - b.pid })
	return r
}

// run is the whole transaction, on the tracing thread.
func (x *transaction) run() error {
	start := time.Now()
	err := x.prepare()
	x.report.Prepare = time.Since(start)
	if err != nil {
		x.reportHeld()
		return fmt.Errorf("%w; nothing was changed", err)
	}
	if len(x.found) > 0 {
		// Memory that the preparation has done with need not be faulted in, as new memory must.
		runtime.GC() // a real-time thread would wait for normal ones
		if x.lent, err = lendPriority(x.o.OwnProcess); err != nil {
			x.report.NoPriority = err.Error()
		}
		defer x.lent.close()
	}
	begun := time.Now()
	x.deadline = begun.Add(x.o.Deadline)
	if len(x.found) > 0 {
		over := make(chan struct{})
		defer close(over)
		x.pulse.tid = unix.Gettid()
		x.asides.helper = newHelper(x.lent != nil)
		defer x.asides.close()
		x.watch(over)
	}
	err = x.exchangeAll()
	if len(x.report.Processes) > 0 {
		x.report.Pause = x.resumed.Sub(begun)
	}
	if !x.asides.hung {
		x.reportRunning()
		x.reportHeld()
	}
	return err
}

// prepare does what can be done while the processes run.
func (x *transaction) prepare() error {
	if err := x.step(StepScan); err != nil {
		return err
	}
	if err := x.lookAtAll(); err != nil {
		return err
	}
	if err := x.s.lookHost(); err != nil {
		return err
	}
	if err := x.requireAll(); err != nil {
		return err
	}
	if err := x.step(StepReplace); err != nil {
		return err
	}
	if err := x.replace(); err != nil {
		return err
	}
	return x.leaveHopeless()
}

// leaveHopeless leaves processes alone that have nothing that can be swapped.
func (x *transaction) leaveHopeless() error {
	refused := map[Object]bool{}
	for _, s := range x.report.Skipped {
		refused[s.Object] = true
	}
	for pid, f := range x.found {
		some := false
		f.each(func(o *Object, it *item) { some = some || it.err == nil && !refused[*o] })
		if some {
			continue
		}
		all := *f
		if all.mem != nil {
			all.mems = []*memory{all.mem}
		}
		all.dropRefused(x.s)
		delete(x.found, pid)
	}
	x.left = x.s.skipped
	return x.requireAll()
}

// requireAll is an error for what is known to be left where it is, if nothing may be.
func (x *transaction) requireAll() error {
	if !x.o.RequireAll {
		return nil
	}
	for _, s := range append(x.s.heldReports(false), x.s.skipped...) {
		if s.Reason != reasonExecutable {
			return fmt.Errorf("%s cannot be swapped: %s", &s.Object, s.Reason)
		}
	}
	return nil
}

// lookAtAll scans every candidate while it runs.
func (x *transaction) lookAtAll() error {
	if _, err := x.refresh(); err != nil {
		return err
	}
	x.s.reset()
	clear(x.found)
	clear(x.s.passed)
	clear(x.s.looked)
	clear(x.s.flags)
	for _, p := range x.sortedKnown() {
		f, err := x.s.scanProcess(p.pid, p.pidfd, true)
		if err != nil {
			return err
		}
		if f.matches() {
			if err := x.frozen.check(p.pid, p.comm); err != nil {
				return err
			}
			x.found[p.pid] = f
		}
	}
	return x.s.lookRings()
}

// lateRounds bounds how often processes are looked through again for what came
// to them while others were stopped.
const lateRounds = 3

// exchangeAll stops the groups one after another, and changes everything.
func (x *transaction) exchangeAll() error {
	groups := x.groups()
	x.rolling = len(groups) > 1
	if !x.rolling {
		return x.exchangeGroup(slices.Concat(groups...))
	}
	for range lateRounds {
		for _, g := range groups {
			if err := x.exchangeGroup(g); err != nil {
				return err
			}
		}
		// processes that were started meanwhile, or got a file from one that was not stopped yet
		err := x.lookAtAll()
		if err == nil {
			err = x.replace()
		}
		if err == nil {
			err = x.leaveHopeless()
		}
		if err != nil {
			return x.partly(err)
		}
		if groups = x.groups(); x.o.Exchanged != nil {
			return x.exchangeLast(slices.Concat(groups...))
		}
		if len(groups) == 0 {
			break
		}
	}
	return nil
}

// exchangeLast ends a swap of several groups. As long as what the caller takes away by
// Exchanged is there, a path, or "..", can lead a process that was let go back to where
// it was taken from. So those of which that is likely stand still meanwhile: late has
// something to be swapped again, others have changed their directory since.
func (x *transaction) exchangeLast(late []*process) error {
	for pid, dirs := range x.given {
		if p := x.known[pid]; p != nil && !slices.Contains(late, p) && slices.ContainsFunc(dirs, givenDir.changed) {
			late = append(late, p)
		}
	}
	if len(late) == 0 {
		return x.partly(x.exchanged())
	}
	x.rolling = false
	return x.exchangeGroup(late)
}

// givenDir is a directory that a process was given: where /proc shows it, and which it was.
type givenDir struct {
	path string
	is   identity
}

// changed: a thread that has ended is at no other place.
func (g givenDir) changed() bool {
	now, err := identify(g.path)
	now.mode = g.is.mode
	return err == nil && now != g.is
}

// noteDirs notes the directories that a job has given, if it is going to be asked for them.
func (x *transaction) noteDirs(j *job) {
	if !x.rolling || x.o.Exchanged == nil || j.fs == nil {
		return
	}
	for _, p := range []*place{j.fs.cwd, j.fs.root} {
		if p == nil {
			continue
		}
		path := procPath(j.fs.tid, p.obj.Kind.String())
		if is, err := identify(procPath(x.s.self, "fd/"+strconv.Itoa(p.item.repl))); err == nil { // an O_PATH file of ours
			x.given[j.p.pid] = append(x.given[j.p.pid], givenDir{path, is})
		}
	}
}

func (x *transaction) exchanged() error {
	if x.o.Exchanged == nil {
		return nil
	}
	err := error(nil)
	if x.pulse.standing.Load() {
		err = x.patiently("the last step", x.o.Exchanged)
	} else {
		err = x.o.Exchanged()
	}
	if err != nil {
		return fmt.Errorf("when all was exchanged: %w", err)
	}
	return nil
}

// partly says of an error what it left.
func (x *transaction) partly(err error) error {
	if err == nil {
		return nil
	}
	if !x.done {
		return fmt.Errorf("%w; nothing was changed", err)
	}
	return fmt.Errorf("%w; %w", err, ErrPartly)
}
