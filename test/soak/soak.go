package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// patience is how long an answer, or an end, may take. It is long for the sake of
// machines that are busy with other things: what never comes is found, not what is slow.
const patience = 3 * time.Minute

// soak is one run.
type soak struct {
	lab *lab.Lab
	o   options
	out io.Writer
	// dir is of this run: volumes and logs. It stays when something was found.
	dir string
	// log takes each step.
	log *os.File

	targets []*target
	agent   *agent
	sampler *sampler
	sum     summary

	mu sync.Mutex
	// findings are what must not have been.
	findings []string
	found    chan struct{} // closed with the first
	now      string        // the step that is done
}

func newSoak(l *lab.Lab, o options, out io.Writer) (s *soak, err error) {
	s = &soak{lab: l, o: o, out: out, found: make(chan struct{})}
	if s.dir, err = os.MkdirTemp("", "faultgraft-soak-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(s.dir, 0o755); err != nil { // databases are not root
		return nil, err
	}
	if s.log, err = os.Create(filepath.Join(s.dir, "steps.log")); err != nil {
		return nil, err
	}
	return s, nil
}

// note writes a line of the log of steps.
func (s *soak) note(format string, args ...any) {
	line := time.Now().UTC().Format("15:04:05.000 ") + fmt.Sprintf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintln(s.log, line) // what it could not keep is printed
	if s.o.verbose {
		_, _ = fmt.Fprintln(s.out, line)
	}
}

func (s *soak) say(format string, args ...any) { _, _ = fmt.Fprintf(s.out, format+"\n", args...) }

// find takes what must not have been.
func (s *soak) find(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	s.mu.Lock()
	first := len(s.findings) == 0
	what = fmt.Sprintf("%s (at %s, in step %s)", what, time.Now().UTC().Format("15:04:05.000"), s.now)
	s.findings = append(s.findings, what)
	s.mu.Unlock()
	s.note("FOUND %s", what)
	s.say("soak: FOUND %s", what)
	if first { // before all else that is done now changes it
		s.keepLogs()
		s.keepThreads(what)
		close(s.found)
	}
}

func (s *soak) clean() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.findings) == 0
}

// run sets the containers up, does steps and checks until the time is over or something is found, and takes all down.
func (s *soak) run(ctx context.Context) (err error) {
	// what has been begun is ended in order also after an interrupt
	life, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.length+2*time.Hour)
	defer cancel()
	defer func() { err = errors.Join(err, s.log.Close()) }()
	s.sum.begin = time.Now()
	if err := s.setUp(life); err != nil {
		return errors.Join(err, s.takeDown(life))
	}
	end := time.Now().Add(s.o.length)
	n := 0
	last := false
	for phase := 1; !last && s.clean(); phase++ {
		until := time.Now().Add(s.o.checkpoint)
		if until.After(end.Add(-s.o.checkpoint / 2)) {
			until = end
		}
		n = s.phase(ctx, life, n, until)
		last = !time.Now().Before(end) || ctx.Err() != nil
		if s.clean() {
			s.check(life, phase, last)
		}
	}
	if !s.clean() {
		s.keepTraces(life)
	}
	err = s.takeDown(life)
	s.sum.length = time.Since(s.sum.begin)
	s.say("%s", s.sum.text(s))
	switch {
	case !s.clean():
		return errors.Join(fmt.Errorf("%d findings; logs and files are in %s", len(s.findings), s.dir), err)
	case err != nil:
		return err
	}
	return os.RemoveAll(s.dir)
}

// phase has the clients work and does steps from number n on, until that time or the first finding, but each kind once before it ends; it returns the number of the next step.
func (s *soak) phase(ctx, life context.Context, n int, until time.Time) int {
	rest := s.clients(life)
	for ; (time.Now().Before(until) || n < len(kindsWithout(s.o.without))) && ctx.Err() == nil && s.clean(); n++ {
		st := drawStep(s.o.seed, n, s.o.without)
		if st.kind.name != restartContainerd {
			s.do(life, st)
		} else { // clients in sessions of nerdctl exec would end with it; what the containers themselves do goes on
			rest()
			s.do(life, st)
			rest = s.clients(life)
		}
		s.allWell(life)
	}
	rest()
	return n
}

// clients has them work until the function that it returns is called; that waits until they have ended what they began.
func (s *soak) clients(life context.Context) (rest func()) {
	work, stop := context.WithCancel(life)
	var clients sync.WaitGroup
	for _, t := range s.targets {
		clients.Go(func() { t.work(work, life) })
	}
	return func() {
		stop()
		ended := make(chan struct{})
		go func() { clients.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(2 * patience):
			s.find("clients do not end within %s", 2*patience)
		}
	}
}

// do does one step.
func (s *soak) do(ctx context.Context, st step) {
	limited, cancel := context.WithTimeout(ctx, 3*patience)
	defer cancel()
	select {
	case <-time.After(st.rest):
	case <-s.found:
		return
	}
	s.mu.Lock()
	s.now = fmt.Sprintf("#%d %s", st.n, st.kind.name)
	s.mu.Unlock()
	s.sum.count("step " + st.kind.name)
	if err := st.kind.do(s, limited, st); err != nil {
		s.find("%v", err)
	}
}

// allWell sees whether the containers are well after a step.
func (s *soak) allWell(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, 3*patience)
	defer cancel()
	for _, t := range s.targets {
		s.well(limited, t)
	}
}

// well sees whether clients get answers and layers are alive.
func (s *soak) well(ctx context.Context, t *target) {
	done := t.acknowledged()
	for end := time.Now().Add(patience); t.acknowledged() == done; time.Sleep(5 * time.Millisecond) {
		select {
		case <-s.found:
			return
		default:
		}
		if time.Now().After(end) {
			s.find("%s: its clients get no answer for %s", t.name, patience)
			return
		}
	}
	pid, err := t.pid(ctx)
	if err != nil {
		s.find("%s: %v", t.name, err)
		return
	}
	mounts, err := layers(pid)
	if err != nil {
		s.find("%s: %v", t.name, err)
		return
	}
	for _, m := range mounts {
		if err := answers(pid, m); err != nil {
			s.find("%s: the layer on %s: %v", t.name, m, err)
		}
	}
}

// layers are the mount points of faultgraft's layers as the process sees them.
func layers(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		// id parent major:minor root mountpoint … - type …: proc_pid_mountinfo(5)
		if f := strings.Fields(line); len(f) > 5 && strings.Contains(line, " - fuse.faultgraft ") {
			out = append(out, f[4])
		}
	}
	return out, nil
}

// answers looks a name up on the layer, which its server has to answer. One that was taken off meanwhile is well.
func answers(pid int, mount string) error {
	got := make(chan error, 1)
	go func() {
		_, err := os.Lstat(fmt.Sprintf("/proc/%d/root%s/.soak-looks-here", pid, mount))
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		got <- err
	}()
	select {
	case err := <-got:
		return err
	case <-time.After(patience):
		return fmt.Errorf("a look-up has no answer for %s", patience)
	}
}
