package tracer_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// swapAndDie is the test binary in another role: a Go target, or a tracer that
// kills itself.
func swapAndDie() {
	if os.Getenv("TRACER_TEST_SWAP") == "busy" {
		busy()
		return
	}
	var p place
	var pid, point, delay int
	var sig syscall.Signal // for the process, before the tracer dies
	if _, err := fmt.Sscan(os.Getenv("TRACER_TEST_SWAP"), &p.a, &p.b, &p.mntA, &p.mntB, &pid, &point, &delay, &sig); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	die := func() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	s := &swapper{t: &testing.B{}, at: &p, pid: pid}
	o := s.forward()
	n := 0
	o.Step = func(string) error {
		if n++; n == point {
			if sig != 0 {
				_ = syscall.Kill(pid, sig)
			}
			if delay == 0 {
				die()
			}
			go func() { // in the middle of what comes after the step
				for end := time.Now().Add(time.Duration(delay) * time.Microsecond); time.Now().Before(end); {
				}
				die()
			}()
		}
		return nil
	}
	if _, err := tracer.Swap(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// busy is a Go program with a file at descriptor 3, until its stdin ends.
func busy() {
	var stop atomic.Bool
	errs := make(chan error, 8)
	for i := range 8 {
		go func() {
			var b [4]byte
			for n := 0; !stop.Load(); n++ {
				if k, err := syscall.Pread(3, b[:], 2); err != nil || string(b[:k]) != "2345" {
					errs <- fmt.Errorf("read %q: %v", b[:k], err)
					return
				}
				_ = make([]byte, 1<<12)
				if i == 0 && n%1000 == 0 {
					runtime.GC()
				}
			}
			errs <- nil
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	stop.Store(true)
	for range 8 {
		if err := <-errs; err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(0)
}

// A tracer that is killed, at every step and at moments after it: the target
// goes on with files that are valid, old or new.
func TestTracerKilled(t *testing.T) {
	at := newPlace(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const threads = 4
	p := start(t, "target", "files", at.a, "200", strconv.Itoa(threads))
	before := status(t, p.pid())
	steps := 0
	killed, finished := 0, 0
	for point := 1; ; point++ {
		for _, delay := range []int{0, 50, 150, 300, 600, 1200} {
			cmd := tracerThatDies(self, at, p.pid(), point, delay, 0)
			err := cmd.Run()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				killed++
			} else if err != nil {
				t.Fatalf("point %d, delay %d: the swap failed: %v", point, delay, err)
			} else {
				finished++
			}
			p.check()
			// nothing of ours is left, once the code had its 3 s to give up
			for end := time.Now().Add(30 * time.Second); status(t, p.pid()) != before; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("point %d, delay %d: the target is left as\n%s\nand was\n%s\n%s", point, delay, status(t, p.pid()), before, threadStates(p.pid()))
				}
			}
			old, now := onMount(t, at.mntA, p.pid()), onMount(t, at.mntB, p.pid())
			if old+now != 201 {
				t.Fatalf("point %d, delay %d: %d objects on the old mount, %d on the new", point, delay, old, now)
			}
			if old != 0 && now != 0 {
				t.Errorf("point %d, delay %d: half of the files was swapped: %d old, %d new", point, delay, old, now)
			}
			if now > 0 { // again from the start: a way back that opens by name
				back := newSwapper(t, &place{a: at.b, b: at.a, mntA: at.mntB, mntB: at.mntA}, p.pid())
				swap(t, back.forward())
				back.drop()
			}
			if t.Failed() {
				return
			}
		}
		steps = point
		if point >= 9 {
			break
		}
	}
	t.Logf("%d steps, killed %d times, %d swaps had ended", steps, killed, finished)
	p.quit()
}

func tracerThatDies(self string, at *place, pid, point, delay int, sig syscall.Signal) *exec.Cmd {
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("TRACER_TEST_SWAP=%s %s %d %d %d %d %d %d", at.a, at.b, at.mntA, at.mntB, pid, point, delay, sig))
	cmd.Stderr = os.Stderr
	return cmd
}

// The same for a thread that was computing, which must restore registers and
// flags by itself.
func TestTracerKilledWhileComputing(t *testing.T) {
	at := newPlace(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, "target", "spin", at.a)
	before := status(t, p.pid())
	for round := range 40 {
		point := 5 + round%5 // from the seizing on
		if err := tracerThatDies(self, at, p.pid(), point, round/5*60, 0).Run(); err == nil {
			t.Logf("round %d: the swap had ended", round)
		}
		waitFor(t, func() bool { return status(t, p.pid()) == before })
		if onMount(t, at.mntB, p.pid()) > 0 {
			back := newSwapper(t, &place{a: at.b, b: at.a, mntA: at.mntB, mntB: at.mntA}, p.pid())
			swap(t, back.forward())
			back.drop()
		}
	}
	if err := syscall.Kill(p.pid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.want("ok")
	p.end()
}

// status is what a killed tracer may have left: descriptors, maps, a signal
// mask, a tracer, a priority.
func status(t testing.TB, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var r strings.Builder
	for line := range strings.Lines(string(b)) {
		switch k, _, _ := strings.Cut(line, ":"); k {
		case "TracerPid", "SigBlk", "SigPnd", "ShdPnd", "Threads":
			r.WriteString(line)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var lim unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &lim); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&r, "%d descriptors, %d maps, limit %v, priorities %v", len(fds), strings.Count(maps(t, pid), "\n"), lim, priorities(t, pid))
	return r.String()
}
