package tracer

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// exchangeGroup stops processes, exchanges what they have, and lets them go.
func (x *transaction) exchangeGroup(members []*process) error {
	x.e, x.jobs = x.newEngine(), nil
	x.stopping = time.Now()
	x.pulse.standing.Store(true)
	x.pulse.passing.Store(false)
	x.s.within = func(what string, do func() error) error {
		return x.early(what, func(*atomic.Bool) error { return do() })
	}
	defer func() {
		x.pulse.standing.Store(false)
		x.s.within = nil
	}()
	x.s.reset()
	err := x.exchange(members)
	if err == nil {
		mark := time.Now()
		err = x.release()
		x.report.Phases.Resume += time.Since(mark)
		x.done = x.done || len(x.jobs) > 0
		x.addToReport()
		x.forgetStop()
		if err != nil {
			return fmt.Errorf("let the processes go: %w; %w", x.whyStuck(members, err), ErrUnfinished)
		}
		return nil
	}
	err = x.whyStuck(members, err)
	rollback := x.rollback()
	if !x.asides.hung {
		x.addSkipped()
	}
	if rollback != nil {
		return fmt.Errorf("%w; and not all could be put back: %w; %w", err, rollback, ErrUnfinished)
	}
	return x.partly(err)
}

// whyStuck adds to an error that a process was frozen while its threads were stopped: none of
// them runs the code that it was given.
func (x *transaction) whyStuck(members []*process, err error) error {
	if frozen := new(errFrozen); errors.As(err, &frozen) {
		return err
	}
	for _, p := range members {
		if frozen := p.frozenNow(); frozen != nil {
			return fmt.Errorf("%w: %w", frozen, err)
		}
	}
	return err
}

// exchange stops the processes and changes everything.
func (x *transaction) exchange(members []*process) error {
	if err := x.step(StepSeize); err != nil {
		return err
	}
	if err := x.stop(members); err != nil {
		return err
	}
	all, err := x.lookAgain()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(x.s.items, (*item).unanswered) {
		if err := x.early("new files for what came late", func(*atomic.Bool) error { return x.replace() }); err != nil {
			return err
		}
	}
	var jobs []*job
	prepare := func(over *atomic.Bool) (err error) {
		jobs, err = x.ready(all, over)
		return err
	}
	if x.mayWait() {
		err = x.early("prepare the exchange", prepare)
	} else {
		err = prepare(new(atomic.Bool))
	}
	if err != nil {
		return err
	}
	x.jobs = jobs
	if len(x.e.order) > 0 {
		x.report.Phases.Stop += time.Since(x.stopping)
	}
	return x.runJobs()
}

// How far Options.Stopped has come.
const (
	notBegun int32 = iota // or it failed
	beginning
	beginningDone
)

// mayWait: ready may have to wait for somebody else.
func (x *transaction) mayWait() bool {
	if x.o.MayWait == nil || x.o.Stopped != nil && x.begun.Load() == notBegun || x.o.MayWait(nil) {
		return true
	}
	return slices.ContainsFunc(x.s.items, func(it *item) bool { return len(it.Holders) > 0 && it.repl >= 0 && x.o.MayWait(&it.Description) })
}

// errGivenUp is read by nobody.
var errGivenUp = errors.New("it was given up")

// ready does what is left to be done before code of ours runs in the processes. It begins nothing once over says that it was given up.
func (x *transaction) ready(all *found, over *atomic.Bool) (jobs []*job, err error) {
	if err := x.step(StepStopped); err != nil {
		return nil, err
	}
	if x.o.Stopped != nil && x.begun.CompareAndSwap(notBegun, beginning) {
		if over.Load() { // whoever gave up before this sees that it may have begun
			x.begun.Store(notBegun)
			return nil, errGivenUp
		}
		if err := x.o.Stopped(); err != nil {
			x.begun.Store(notBegun)
			return nil, fmt.Errorf("while all is stopped: %w", err)
		}
		x.begun.Store(beginningDone)
	}
	if err := x.settle(over); err != nil {
		return nil, err
	}
	if over.Load() {
		return nil, errGivenUp
	}
	all.dropRefused(x.s)
	if err := x.requireAll(); err != nil {
		return nil, err
	}
	return x.plan(all)
}

// settle makes the new descriptions what the old ones are, now that nobody uses these.
func (x *transaction) settle(over *atomic.Bool) error {
	items := slices.DeleteFunc(slices.Clone(x.s.items), func(it *item) bool { return len(it.Holders) == 0 || it.repl < 0 })
	at := &progress{items: items, begun: make([]atomic.Bool, len(items)), done: make([]atomic.Bool, len(items))}
	x.settling.Store(at)
	failed := make([]error, len(items))
	spread(len(items), func(i int) {
		if over.Load() {
			return
		}
		at.begun[i].Store(true)
		failed[i] = items[i].withNew(func(fd int) error { return x.settleOne(items[i], fd) })
		at.done[i].Store(true)
	})
	if i := slices.IndexFunc(failed, func(err error) bool { return err != nil }); i >= 0 {
		return fmt.Errorf("prepare the exchange of %s: %w", &items[i].Holders[0], failed[i])
	}
	return nil
}

func (x *transaction) settleOne(it *item, fd int) error {
	if x.o.Settle != nil {
		if err := x.o.Settle(&it.Description, fd); err != nil {
			return err
		}
	}
	if it.live {
		return nil
	}
	var err error
	if x.o.InUse {
		err = it.lookAtNew(fd)
	}
	if err == nil {
		err = it.carryOver(fd)
	}
	if err != nil {
		it.err = err
	}
	return nil
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
			p.lines = m.lines
			if _, isNew := mems.find(func(o *memory) int { return kcmp(m.tid, o.tid, kcmpVM, 0, 0) }, func() *memory { return m }); isNew {
				all.mems = append(all.mems, m)
			}
		}
	}
	return all, x.s.lookRings()
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
		x.e.keepWaiting(nil)
		x.e.lent.lend(j.t.tid)
		if err := f(j); errors.Is(err, errTargetGone) {
			j.gone = true
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (x *transaction) runJobs() error {
	mark := time.Now()
	phase := func(d *time.Duration) {
		now := time.Now()
		*d += now.Sub(mark)
		mark = now
	}
	err := x.each(StepInject, func(j *job) error { return j.inject(x) })
	phase(&x.report.Phases.Inject)
	if err != nil {
		return err
	}
	defer phase(&x.report.Phases.Exchange)
	if err := x.each(StepStage, func(j *job) error { return j.stage(newFile, j.cwd) }); err != nil {
		return err
	}
	if err := x.inTime(); err != nil {
		return err
	}
	err = x.each(StepCommit, func(j *job) error {
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
	if err := x.step(StepRelease); err != nil {
		return err
	}
	if x.rolling {
		return nil
	}
	return x.exchanged()
}

// inTime is asked before anything is exchanged: whether the processes stand still
// for longer than they may.
func (x *transaction) inTime() error {
	if now := time.Now(); now.After(x.deadline) {
		return fmt.Errorf("the exchange was not begun within %v", x.o.Deadline)
	}
	if x.o.Budget <= 0 {
		return nil
	}
	for _, p := range x.e.order {
		if d := time.Since(p.since); !p.since.IsZero() && p.alive() && d > x.o.Budget {
			return fmt.Errorf("process %d (%s) has been stopped for %v, longer than its budget of %v", p.pid, p.comm, d.Round(10*time.Microsecond), x.o.Budget)
		}
	}
	return nil
}
