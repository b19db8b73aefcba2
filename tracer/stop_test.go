package tracer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// G2: a process without a matching object is never stopped. A stop would leave
// a trace: PTRACE_SEIZE adds to what the report lists, and TracerPid would be
// seen by the target itself.
func TestOthersAreNotStopped(t *testing.T) {
	at, other := newPlace(t), newPlace(t)
	p := start(t, "target", "files", at.a, "5", "2")
	q := start(t, "target", "files", other.a, "5", "2")
	s := newSwapper(t, at, p.pid())
	o := s.forward()
	o.Processes = func() ([]int, error) { return []int{p.pid(), q.pid(), os.Getpid(), 2}, nil }
	watch := func() {
		for pid, traced := range map[int]bool{p.pid(): true, q.pid(): false} {
			if got := tracerOf(t, pid) != 0; got != traced {
				t.Errorf("process %d traced: %v, want %v", pid, got, traced)
			}
		}
	}
	stopped := 0
	o.Stopped = func() error { watch(); stopped++; return nil }
	r := swap(t, o)
	if len(r.Processes) != 1 || r.Processes[0].PID != p.pid() || r.Processes[0].Threads != 2 || stopped != 1 {
		t.Errorf("stopped: %+v", r.Processes)
	}
	p.check()
	q.check()
	p.quit()
	q.quit()
}

func tracerOf(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscanf(string(regexp.MustCompile(`TracerPid:\s*\d+`).Find(b)), "TracerPid: %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// G3: a thread in uninterruptible sleep, here in vfork, ends the swap by its deadline.
func TestUninterruptible(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "vfork", at.a)
	waitFor(t, func() bool { return strings.Contains(threadStates(p.pid()), ") D") })
	s := newSwapper(t, at, p.pid())
	o := s.forward()
	o.Deadline = 300 * time.Millisecond
	var undone []string
	o.Undo = func() error { undone = append(undone, "undo"); return nil }
	_, err := tracer.Swap(context.Background(), o)
	want := regexp.MustCompile(fmt.Sprintf(`^thread %d \(target\) is in uninterruptible sleep \(.*\) for [0-9.]+m?s; nothing was changed$`, p.pid()))
	if err == nil || !want.MatchString(err.Error()) {
		t.Fatalf("error %v", err)
	}
	if undone != nil {
		t.Error("Undo was called, Stopped was not")
	}
	if n := tracerOf(t, p.pid()); n != 0 {
		t.Errorf("still traced by %d", n)
	}
	if n := onMount(t, at.mntB, p.pid()); n != 0 {
		t.Errorf("%d objects were swapped", n)
	}
	p.say("quit")
	p.want("ok")
	p.end()
}

// A child of vfork that has the files too runs on until it lets its parent go.
func TestVforkChildIsNotADeadlock(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "3", "1")
	p.say("check") // leave it busy with its own work
	p.want("ok")
	// a shell that starts programs by vfork without end
	sh := exec.Command("sh", "-c", "exec 3<f0; while :; do /bin/true; done")
	sh.Dir = at.a
	sh.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	pid := sh.Process.Pid
	t.Cleanup(func() {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		_ = sh.Wait()
	})
	waitFor(t, func() bool { _, err := os.Stat(fmt.Sprintf("/proc/%d/fd/3", pid)); return err == nil })
	s := newSwapper(t, at, pid)
	for range 20 {
		swap(t, s.forward())
		if n := onMount(t, at.mntA, pid); n != 0 {
			t.Fatalf("%d objects left", n)
		}
		swap(t, s.backward())
		s.drop()
	}
	p.quit()
}

func waitFor(t testing.TB, f func() bool) {
	t.Helper()
	for range 1000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("it does not happen")
}

func TestAlreadyTraced(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "3", "3")
	ready, end, done := make(chan error), make(chan bool), make(chan bool)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(done)
		_, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(p.pid()), 0, 0, 0, 0)
		if e != 0 {
			ready <- e
			return
		}
		ready <- nil
		<-end
		for _, req := range []uintptr{unix.PTRACE_INTERRUPT, unix.PTRACE_DETACH} {
			if _, _, e := unix.Syscall6(unix.SYS_PTRACE, req, uintptr(p.pid()), 0, 0, 0, 0); e != 0 {
				t.Error(e)
			}
			if req == unix.PTRACE_INTERRUPT {
				if _, err := syscall.Wait4(p.pid(), nil, unix.WALL, nil); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	_, err := tracer.Swap(context.Background(), newSwapper(t, at, p.pid()).forward())
	if err == nil || !strings.Contains(err.Error(), "is traced by process") || !strings.HasSuffix(err.Error(), "nothing was changed") {
		t.Errorf("error %v", err)
	}
	close(end)
	<-done
	waitFor(t, func() bool { return tracerOf(t, p.pid()) == 0 })
	p.check()
	p.quit()
}

// A process that job control stopped is swapped, and stays stopped.
func TestGroupStop(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "3", "3")
	isStopped := func() bool { return strings.Count(threadStates(p.pid()), ") T") == 3 }
	if err := syscall.Kill(p.pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, isStopped)
	s := newSwapper(t, at, p.pid())
	swap(t, s.forward())
	if n := onMount(t, at.mntA, p.pid()); n != 0 {
		t.Errorf("%d objects left", n)
	}
	waitFor(t, isStopped)
	swap(t, s.backward())
	waitFor(t, isStopped)
	if err := syscall.Kill(p.pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.check()
	p.quit()
}

// A SIGSTOP that comes while the process is stopped stops it afterwards.
func TestStopSignalDuringSwap(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "3", "3")
	s := newSwapper(t, at, p.pid())
	for _, step := range []string{tracer.StepStopped, tracer.StepStage, tracer.StepCommit, tracer.StepRelease} {
		o := s.forward()
		o.Step = func(at string) error {
			if at == step {
				return syscall.Kill(p.pid(), syscall.SIGSTOP)
			}
			return nil
		}
		swap(t, o)
		waitFor(t, func() bool { return strings.Count(threadStates(p.pid()), ") T") == 3 })
		if err := syscall.Kill(p.pid(), syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		p.check()
		swap(t, s.backward())
		s.drop()
	}
	p.quit()
}

// G17: thousands of queued signals during swaps, each delivered once.
func TestSignals(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "signals", at.a, "200000")
	s := newSwapper(t, at, p.pid())
	p.say("go")
	answer := make(chan string, 1)
	go func() {
		line, _ := p.lines.ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	swaps := 0
	for {
		select {
		case line := <-answer:
			if line != "ok" || swaps < 5 {
				t.Errorf("target says %q after %d swaps", line, swaps)
			}
			p.end()
			return
		default:
		}
		for _, o := range []tracer.Options{s.forward(), s.backward()} {
			o.Processes = func() ([]int, error) { return []int{p.pid()}, nil }
			if _, err := tracer.Swap(context.Background(), o); err != nil {
				t.Fatal(err)
			}
		}
		s.drop()
		swaps++
	}
}

// Flags, vector registers and everything else of a thread that was computing.
func TestComputingThread(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "spin", at.a)
	s := newSwapper(t, at, p.pid())
	for range 100 {
		swap(t, s.forward())
		swap(t, s.backward())
		s.drop()
	}
	if err := syscall.Kill(p.pid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.want("ok")
	p.end()
}

// Forks and new threads without end: none is left on the old mount.
func TestForkStorm(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "storm", at.a)
	s := newSwapper(t, at, p.pid())
	for i := range 30 {
		o, old := s.forward(), at.mntA
		if i%2 == 1 {
			o, old = s.backward(), at.mntB
		}
		if _, err := tracer.Swap(context.Background(), o); err != nil {
			t.Fatalf("swap %d: %v", i, err)
		}
		pids, err := tree(p.pid())
		if err != nil {
			t.Fatal(err)
		}
		if n := onMount(t, old, pids...); n != 0 {
			t.Fatalf("swap %d: %d objects left on the old mount", i, n)
		}
	}
	p.say("quit")
	p.want("ok")
	p.want("ok")
	p.end()
}

// Threads with a descriptor table and directories of their own.
func TestOwnTables(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "tables", at.a)
	p.check()
	tids := threads(t, p.pid())
	s := newSwapper(t, at, p.pid())
	for range 5 {
		swap(t, s.forward())
		if n := onMount(t, at.mntA, tids...); n != 0 || len(tids) != 2 {
			t.Fatalf("%d objects left in threads %v", n, tids)
		}
		p.check()
		swap(t, s.backward())
		s.drop()
		if n := onMount(t, at.mntB, tids...); n != 0 {
			t.Fatalf("%d objects left", n)
		}
		p.check()
	}
	p.quit()
}

// A Go program: many threads, goroutine preemption by signals, its own SIGSEGV handler.
func TestGoTarget(t *testing.T) {
	at := newPlace(t)
	if err := os.WriteFile(at.a+"/f", []byte("0123456789"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(at.a + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "TRACER_TEST_SWAP=busy")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	s := newSwapper(t, at, pid)
	for i := range 40 {
		for _, o := range []tracer.Options{s.forward(), s.backward()} {
			if _, err := tracer.Swap(context.Background(), o); err != nil {
				t.Errorf("swap %d: %v", i, err)
			}
		}
		s.drop()
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the Go program: %v", err)
	}
}

// The deadline, the caller's context, and errors of every function.
func TestCallerGivesUp(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "20", "3")
	s := newSwapper(t, at, p.pid())
	before := state(t, p.pid())
	boom := errors.New("boom")
	for name, change := range map[string]func(*tracer.Options, context.CancelFunc){
		"processes": func(o *tracer.Options, _ context.CancelFunc) {
			o.Processes = func() ([]int, error) { return nil, boom }
		},
		"replace": func(o *tracer.Options, _ context.CancelFunc) {
			o.Replace = func(*tracer.Description) (int, error) { return -1, boom }
		},
		"seized":  func(o *tracer.Options, _ context.CancelFunc) { o.Seized = func() error { return boom } },
		"stopped": func(o *tracer.Options, _ context.CancelFunc) { o.Stopped = func() error { return boom } },
		"cancel":  func(o *tracer.Options, c context.CancelFunc) { o.Stopped = func() error { c(); return nil } },
	} {
		ctx, cancel := context.WithCancel(context.Background())
		o := s.forward()
		change(&o, cancel)
		_, err := tracer.Swap(ctx, o)
		cancel()
		if err == nil || !errors.Is(err, boom) && !errors.Is(err, context.Canceled) || !strings.HasSuffix(err.Error(), "nothing was changed") {
			t.Errorf("%s: error %v", name, err)
		}
		s.drop()
		sameState(t, before, state(t, p.pid()))
	}
	p.check()
	p.quit()
}

// A target that dies in the middle is no error.
func TestTargetDies(t *testing.T) {
	at := newPlace(t)
	for _, step := range []string{tracer.StepScan, tracer.StepSeize, tracer.StepStopped, tracer.StepInject, tracer.StepStage, tracer.StepCommit, tracer.StepCheck, tracer.StepRelease} {
		t.Run(step, func(t *testing.T) {
			p := start(t, "target", "files", at.a, "20", "3")
			q := start(t, "target", "files", at.a, "20", "3")
			s := newSwapper(t, at, p.pid())
			o := s.forward()
			o.Processes = func() ([]int, error) { return []int{p.pid(), q.pid()}, nil }
			first := true
			o.Step = func(at string) error {
				if at == step && first {
					first = false
					if err := syscall.Kill(p.pid(), syscall.SIGKILL); err != nil {
						return err
					}
					waitFor(t, func() bool { return !strings.Contains(threadStates(p.pid()), ") t") || tracerOf(t, p.pid()) == 0 })
				}
				return nil
			}
			swap(t, o)
			if n := onMount(t, at.mntA, q.pid()); n != 0 {
				t.Errorf("%d objects of the other process left", n)
			}
			q.check()
			q.quit()
		})
	}
}
