package tracer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// release gives the threads back. What was exchanged stays, whatever happens.
func (x *transaction) release() error {
	var errs []error
	for _, j := range slices.Backward(x.jobs) { // a later one may need an earlier one's code (borrowPage)
		if err := j.finish(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, x.resumeAll())...)
}

func (x *transaction) resumeAll() error {
	var errs []error
	for _, p := range x.e.order {
		if err := x.e.resume(p); err != nil {
			errs = append(errs, err)
		}
		if !p.since.IsZero() {
			x.report.Processes = append(x.report.Processes, ProcessReport{PID: p.pid, Comm: p.comm, Threads: len(p.order), Pause: time.Since(p.since)})
		}
	}
	x.resumed = time.Now()
	return errors.Join(errs...)
}

// forgetStop makes the processes ready for being stopped once more.
func (x *transaction) forgetStop() {
	x.undetached = x.leftTraced()
	for _, p := range x.e.order {
		if p.mem != nil {
			_ = p.mem.Close() // only read and written by pread and pwrite: nothing is lost
		}
		*p = process{pid: p.pid, pidfd: p.pidfd, comm: p.comm, dead: p.dead, threads: map[int]*thread{}}
	}
	for _, it := range x.s.items {
		if len(it.Holders) > 0 && it.repl >= 0 && it.err == nil {
			it.live = true
		}
	}
}

// rollback puts everything back. Its error lists what it could not.
func (x *transaction) rollback() error {
	var errs []error
	for _, j := range slices.Backward(x.jobs) {
		if j.gone {
			continue
		}
		if err := j.finish(); err != nil {
			errs = append(errs, err)
			if j.begun {
				errs = append(errs, fmt.Errorf("%s may have new files: %w", j.what(), err))
			}
			continue
		}
		if !j.begun {
			continue
		}
		if err := j.putBack(x); err != nil && !errors.Is(err, errTargetGone) {
			errs = append(errs, fmt.Errorf("%s: %w", j.what(), err))
		}
	}
	if err := x.undo(); err != nil {
		errs = append(errs, fmt.Errorf("undo: %w", err))
	}
	return errors.Join(append(errs, x.resumeAll())...)
}

// undo reverses Options.Stopped.
func (x *transaction) undo() error {
	if x.done || x.o.Undo == nil {
		return nil
	}
	if x.begun.Load() == beginning { // and was given up
		select {
		case err := <-x.asides.left:
			_ = err // what it was given up for is told already
		case <-time.After(hangPatience):
			return errors.New("it is not known whether what is done while all is stopped was done: it has not come back")
		}
	}
	if x.begun.Load() == notBegun {
		return nil
	}
	return x.patiently("undo", x.o.Undo)
}

// addToReport adds what the exchange of a group did.
func (x *transaction) addToReport() {
	if len(x.e.order) > 0 {
		x.report.Groups++
	}
	for _, j := range x.jobs {
		x.report.RemoteCalls += j.calls
		if j.gone {
			continue
		}
		x.report.Skipped = append(x.report.Skipped, j.refused...)
		x.noteDirs(j)
		refused := func(o *Object) bool {
			return slices.ContainsFunc(j.refused, func(r ObjectReport) bool { return r.Object == *o })
		}
		for _, o := range j.objects() {
			if !refused(o) {
				x.report.Swapped = append(x.report.Swapped, ObjectReport{Object: *o})
			}
		}
	}
	x.addSkipped()
}

// reportRunning adds what processes have that were never stopped.
func (x *transaction) reportRunning() {
	stopped := map[int]bool{}
	for _, p := range x.report.Processes {
		stopped[p.PID] = true
	}
	for _, s := range x.left {
		if !stopped[s.Object.PID] {
			x.report.Skipped = append(x.report.Skipped, s)
		}
	}
}

func (x *transaction) addSkipped() { x.report.Skipped = append(x.report.Skipped, x.s.skipped...) }

// reportHeld adds what the kernel holds.
func (x *transaction) reportHeld() {
	x.report.Skipped = append(x.report.Skipped, x.s.heldReports(false)...)
	x.report.Kept = x.s.heldReports(true)
}

// closePatience is how long the closes of what was exchanged are waited for: the caller has to hear what was done.
const closePatience = time.Second

func (s *scanner) close() {
	var fds []int
	for _, it := range s.items {
		fds = append(fds, it.file)
		if it.repl >= 0 && it.lender == nil {
			fds = append(fds, it.repl)
		}
	}
	s.items = nil
	closeFiles(fds, closePatience)
}

// what names the objects of a job.
func (j *job) what() string {
	var r []string
	for _, o := range j.objects() {
		r = append(r, o.String())
		if len(r) == 10 {
			r = append(r, "…")
			break
		}
	}
	return strings.Join(r, ", ")
}
