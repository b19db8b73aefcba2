package tracer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultDeadline is how long threads may take to stop if Options says nothing.
const DefaultDeadline = 2 * time.Second

// Swap replaces files in running processes, as o says. Either everything that
// can be swapped is, or the error says why not, and that nothing was changed.
// After an error the report tells what is known so far.
//
// The functions of o are called one at a time, on an OS thread of their own.
// None of the processes may be a child that this process waits for meanwhile:
// wait(2) in another thread would take the stops away (ptrace(2)).
func Swap(ctx context.Context, o Options) (*Report, error) {
	if err := archCheck(); err != nil {
		return nil, err
	}
	if o.Processes == nil || o.Match == nil || o.Replace == nil {
		return nil, errors.New("swap: Processes, Match and Replace must be set")
	}
	if o.Deadline == 0 {
		o.Deadline = DefaultDeadline
	}
	if self := os.Getpid(); kcmp(self, self, kcmpVM, 0, 0) != 0 {
		return nil, errors.New("swap: kcmp(2) does not work here: the kernel needs CONFIG_KCMP, a container's seccomp profile must allow it")
	}
	x := &transaction{ctx: ctx, o: &o, known: map[int]*process{}, matched: map[int]bool{}}
	x.s, x.e = newScanner(&o), newEngine(o.RestartErrnos)
	var err error
	onOwnThread(func() { err = x.run() })
	x.s.close()
	x.waitDetached()
	for _, p := range x.known {
		p.close()
	}
	return &x.report, err
}

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
		for _, p := range x.e.order {
			for _, t := range p.order {
				if t.gone || !t.left {
					continue
				}
				if st, err := readStatus(t.tid); err == nil && st.tracer != 0 {
					held = true
				}
			}
		}
		if !held {
			return
		}
	}
}

// transaction is one swap.
type transaction struct {
	ctx      context.Context
	o        *Options
	s        *scanner
	e        *engine
	known    map[int]*process // candidates by PID
	matched  map[int]bool     // by the live scan
	frozen   freezer
	deadline time.Time
	jobs     []*job
	begun    time.Time
	undo     bool // Stopped succeeded
	report   Report
}

func (x *transaction) step(name string) error {
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
		return fmt.Errorf("%w; nothing was changed", err)
	}
	x.begun = time.Now()
	if err = x.exchange(); err == nil {
		err = x.release()
		x.finishReport()
		return err
	}
	rollback := x.rollback()
	x.finishReport()
	x.report.Swapped = nil
	if rollback != nil {
		return fmt.Errorf("%w; and not all could be put back: %w", err, rollback)
	}
	return fmt.Errorf("%w; nothing was changed", err)
}

// prepare does what can be done while the processes run.
func (x *transaction) prepare() error {
	if err := x.step(StepScan); err != nil {
		return err
	}
	if err := x.refresh(); err != nil {
		return err
	}
	for _, p := range x.sortedKnown() {
		f, err := x.s.scanProcess(p.pid, p.pidfd, true)
		if err != nil {
			return err
		}
		if x.matched[p.pid] = f.matches(); x.matched[p.pid] {
			if err := x.frozen.check(p.pid, p.comm); err != nil {
				return err
			}
		}
	}
	if err := x.step(StepReplace); err != nil {
		return err
	}
	return x.replace()
}

// replace asks for new files for the items that have none yet.
func (x *transaction) replace() error {
	for _, it := range x.s.items {
		if it.asked || len(it.Holders) == 0 {
			continue
		}
		if err := x.alive(); err != nil {
			return err
		}
		it.asked = true
		it.repl, it.err = x.o.Replace(&it.Description)
		if it.err != nil {
			it.repl = -1
			if x.o.RequireAll {
				return fmt.Errorf("no replacement for %s: %w", &it.Holders[0], it.err)
			}
		}
	}
	return nil
}

// exchange stops, and changes everything.
func (x *transaction) exchange() error {
	if err := x.step(StepSeize); err != nil {
		return err
	}
	if err := x.stop(); err != nil {
		return err
	}
	all, err := x.lookAgain()
	if err != nil {
		return err
	}
	if err := x.replace(); err != nil {
		return err
	}
	if err := x.step(StepStopped); err != nil {
		return err
	}
	if x.o.Stopped != nil {
		if err := x.o.Stopped(); err != nil {
			return fmt.Errorf("while all is stopped: %w", err)
		}
		x.undo = true
	}
	for _, it := range x.s.items {
		if len(it.Holders) == 0 || it.repl < 0 {
			continue
		}
		if err := it.carryOver(); err != nil {
			it.err = err
		}
	}
	all.dropRefused(x.s)
	if x.o.RequireAll {
		for _, s := range x.s.skipped {
			if s.Reason != reasonExecutable {
				return fmt.Errorf("%s cannot be swapped: %s", &s.Object, s.Reason)
			}
		}
	}
	if err := x.plan(all); err != nil {
		return err
	}
	return x.runJobs()
}

// lookAgain scans what is stopped now, and joins what processes share.
func (x *transaction) lookAgain() (*found, error) {
	x.s.reset()
	all := &found{}
	var tables kcmpSet[*table]
	var dirs kcmpSet[*fsInfo]
	var mems kcmpSet[*memory]
	for _, p := range x.e.order {
		if !p.alive() {
			continue
		}
		f, err := x.s.scanProcess(p.pid, p.pidfd, false)
		if err != nil {
			return nil, err
		}
		for _, t := range f.tables {
			if _, isNew := tables.find(func(o *table) int { return kcmp(t.tid, o.tid, kcmpFiles, 0, 0) }, func() *table { return t }); isNew {
				all.tables = append(all.tables, t)
			}
		}
		for _, d := range f.fs {
			if _, isNew := dirs.find(func(o *fsInfo) int { return kcmp(d.tid, o.tid, kcmpFS, 0, 0) }, func() *fsInfo { return d }); isNew {
				all.fs = append(all.fs, d)
			}
		}
		if m := f.mem; m != nil {
			if _, isNew := mems.find(func(o *memory) int { return kcmp(m.tid, o.tid, kcmpVM, 0, 0) }, func() *memory { return m }); isNew {
				all.mems = append(all.mems, m)
			}
		}
	}
	return all, nil
}

// dropRefused takes out what has no replacement, and reports it.
func (f *found) dropRefused(s *scanner) {
	drop := func(o Object, it *item) bool {
		if it.err == nil && it.repl >= 0 {
			return false
		}
		reason := "there is no replacement"
		if it.err != nil {
			reason = it.err.Error()
		}
		s.skip(o, reason)
		return true
	}
	for _, t := range f.tables {
		t.slots = slices.DeleteFunc(t.slots, func(sl *slot) bool { return drop(sl.obj, sl.item) })
	}
	for _, d := range f.fs {
		for _, p := range []**place{&d.cwd, &d.root} {
			if *p != nil && drop((*p).obj, (*p).item) {
				*p = nil
			}
		}
	}
	for _, m := range f.mems {
		m.maps = slices.DeleteFunc(m.maps, func(p *place) bool { return drop(p.obj, p.item) })
		if m.exe != nil && drop(m.exe.obj, m.exe.item) {
			m.exe = nil
		}
	}
}

// each runs one part of every job; a process that ended has no part in it.
func (x *transaction) each(step string, f func(*job) error) error {
	for _, j := range x.jobs {
		if err := x.step(step); err != nil {
			return err
		}
		if j.gone {
			continue
		}
		if err := f(j); errors.Is(err, errTargetGone) {
			j.gone = true
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (x *transaction) runJobs() error {
	if err := x.each(StepInject, func(j *job) error { return j.inject(x) }); err != nil {
		return err
	}
	if err := x.each(StepStage, func(j *job) error { return j.stage(newFile, j.cwd) }); err != nil {
		return err
	}
	err := x.each(StepCommit, func(j *job) error {
		if err := j.commit(newFile, x.o.NeverEmpty); err != nil {
			return err
		}
		if err := x.step(StepCheck); err != nil {
			return err
		}
		if len(j.refused) > 0 && x.o.RequireAll {
			return fmt.Errorf("%s cannot be swapped: %s", &j.refused[0].Object, j.refused[0].Reason)
		}
		return j.verify(x.s.self, newFile)
	})
	if err != nil {
		return err
	}
	return x.step(StepRelease)
}
