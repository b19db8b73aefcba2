package tracer_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// accomplice is another process of the target's user, which may do to it what a debugger may.
type accomplice struct {
	pid, pidfd int
	had        map[int]bool // sockets that the target has itself
}

func newAccomplice(t *testing.T, pid int) *accomplice {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	a := &accomplice{pid: pid, pidfd: fd, had: map[int]bool{}}
	for _, fd := range a.sockets() {
		a.had[fd] = true
	}
	return a
}

// sockets are those in the target that it did not have before: ends of the pairs of the code in it.
func (a *accomplice) sockets() (fds []int) {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", a.pid))
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:") {
			if fd, err := strconv.Atoi(filepath.Base(l)); err == nil && !a.had[fd] {
				fds = append(fds, fd)
			}
		}
	}
	return fds
}

// tell sends bytes into each of the pairs, as if the code in the target had.
func (a *accomplice) tell(msg []byte) (n int) {
	for _, fd := range a.sockets() {
		own, err := unix.PidfdGetfd(a.pidfd, fd, 0)
		if err != nil {
			continue // closed meanwhile
		}
		if unix.Sendto(own, msg, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil) == nil {
			n++
		}
		_ = unix.Close(own)
	}
	return n
}

// What the code in a target is made to answer is not believed where it cannot be: the swap is undone whole. Where it could
// be, whoever forges it harms the target alone: the swap ends, and the target goes on, if not with all as it was.
func TestForgedReplies(t *testing.T) {
	at := newPlace(t)
	number := func(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }
	for name, msg := range map[string][]byte{
		"all ones": number(^uint64(0)), "negative": number(1 << 63), "many": number(1 << 20), "2^31": number(1 << 31), "one": number(1), "done": number(0),
		"short": {1, 2, 3}, "long": make([]byte, 4096), "nothing": {},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, "target", "files", at.a, "40", "2")
			a := newAccomplice(t, p.pid())
			s := newSwapper(t, at, p.pid())
			o := s.forward()
			told := 0
			o.Step = func(step string) error {
				if step == tracer.StepStage || step == tracer.StepCommit {
					told += a.tell(msg)
				}
				return nil
			}
			_, err := tracer.Swap(context.Background(), o)
			if told == 0 {
				t.Fatal("nothing was forged")
			}
			if name != "all ones" && name != "negative" && name != "2^31" {
				p.say("check")
				if got := p.read(); got != "ok" && !strings.HasPrefix(got, "bad: ") {
					t.Errorf("the target says %q", got)
				}
				p.kill()
				s.drop()
				return
			}
			p.check()
			if err == nil || errors.Is(err, tracer.ErrPartly) {
				swap(t, s.backward())
				p.check()
			}
			if left := a.sockets(); len(left) > 0 {
				t.Errorf("sockets left in the target: %v", left)
			}
			p.quit()
		})
	}
}

// Another process writes all over the memory that the code in the target works with, and into its
// sockets, the whole time. The target may be lost to it; a swap ends all the same, with an error or without.
func TestMemoryIsChangedMeanwhile(t *testing.T) {
	at := newPlace(t)
	for seed := range 6 {
		p := start(t, "target", "files", at.a, "40", "2")
		a := newAccomplice(t, p.pid())
		s := newSwapper(t, at, p.pid())
		o := s.forward()
		before := ranges(p.pid())
		var once sync.Once
		var rounds atomic.Int64
		stop, done := make(chan struct{}), make(chan struct{})
		wreck := func() {
			defer close(done)
			mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", p.pid()), os.O_RDWR, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = mem.Close() }()
			junk := make([]byte, 4096)
			for i := range junk {
				junk[i] = byte(i*7 + seed*31)
				if seed%2 == 0 {
					junk[i] = 0xff
				}
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				for r := range ranges(p.pid()) {
					if before[r] || !strings.HasSuffix(r, " rw-p") {
						continue
					}
					from, _, _ := strings.Cut(r, "-")
					if at, err := strconv.ParseUint(from, 16, 64); err == nil { // the region of the code's batches
						switch seed % 3 {
						case 0:
							_, _ = mem.WriteAt(junk[:16], int64(at+8)) // the numbers of its sockets
						case 1:
							_, _ = mem.WriteAt(junk, int64(at+4096)) // the calls and their results
						case 2:
							_, _ = mem.WriteAt(junk[:64], int64(at+128)) // the numbers of temporary descriptors
						}
					}
				}
				if seed >= 3 {
					a.tell(junk[:8])
				}
				rounds.Add(1)
			}
		}
		o.Step = func(step string) error {
			switch step {
			case tracer.StepInject:
				once.Do(func() { go wreck() })
			case tracer.StepStage, tracer.StepCommit, tracer.StepCheck: // not before it has had its way once more
				for now, end := rounds.Load(), time.Now().Add(10*time.Second); rounds.Load() < now+2 && time.Now().Before(end); {
					time.Sleep(100 * time.Microsecond)
				}
			}
			return nil
		}
		ended := make(chan error, 1)
		go func() { _, err := tracer.Swap(context.Background(), o); ended <- err }()
		select {
		case err := <-ended:
			t.Logf("seed %d: %v", seed, err)
		case <-time.After(2 * time.Minute):
			t.Fatalf("the swap does not end\n%s", threadStates(p.pid()))
		}
		close(stop)
		once.Do(func() { close(done) }) // it never came to the injection
		<-done
		s.drop()
		p.kill()
	}
}

// ranges are the address ranges of a process with their permissions.
func ranges(pid int) map[string]bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	all := map[string]bool{}
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) > 2 {
			all[f[0]+" "+f[1]] = true
		}
	}
	return all
}

// A process that is not looked at changes the descriptor table of one that is swapped, the whole time. Swaps
// end, well or not, and leave the process running and untraced, and nothing of theirs behind here.
func TestTableIsChangedMeanwhile(t *testing.T) {
	at := newPlace(t)
	program := filepath.Join(os.Getenv(prebuilt), "accomplice")
	if os.Getenv(prebuilt) == "" {
		gcc, err := exec.LookPath("gcc")
		if err != nil {
			t.Skip("gcc is not installed: apt install gcc")
		}
		program = filepath.Join(t.TempDir(), "accomplice")
		if out, err := exec.Command(gcc, "-O2", "-o", program, "../test/target/accomplice.c").CombinedOutput(); err != nil {
			t.Fatalf("gcc: %v\n%s", err, out)
		}
	}
	p := start(t, program, at.a, "30")
	ours := openFiles(t)
	failed := 0
	const swaps = 3
	for range swaps {
		s := newSwapper(t, at, p.pid())
		o := s.forward()
		o.RequireAll = false
		o.Processes = func() ([]int, error) { return []int{p.pid()}, nil }
		ended := make(chan error, 1)
		go func() { _, err := tracer.Swap(context.Background(), o); ended <- err }()
		select {
		case err := <-ended:
			if err != nil {
				failed++
				t.Log(err)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("the swap does not end\n%s", threadStates(p.pid()))
		}
		s.drop()
		p.check()
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
		if err != nil || !strings.Contains(string(status), "TracerPid:\t0\n") {
			t.Errorf("it is traced (%v)", err)
		}
	}
	t.Logf("%d of %d swaps failed", failed, swaps)
	if now := openFiles(t); now != ours {
		t.Errorf("%d files are open here, %d were before", now, ours)
	}
}
