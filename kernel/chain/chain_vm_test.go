package chain

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/test/vm"
)

func mkdir(t *testing.T) func() error {
	dir := t.TempDir()
	return func() error { return unix.Mkdir(filepath.Join(dir, "d"), 0o700) }
}

// way is how a chain is watched.
type way struct {
	method Method
	probes bool // by kprobes, although the kernel has trampolines
}

// eachWay runs a test for each of them.
func eachWay(t *testing.T, test func(t *testing.T, w way)) {
	for name, w := range map[string]way{"trampolines": {method: State}, "kprobes": {State, true}, "stack": {method: Stack}} {
		t.Run(name, func(t *testing.T) { test(t, w) })
	}
}

func TestHoldsInsideOnly(t *testing.T) {
	vm.Need(t)
	eachWay(t, func(t *testing.T, w way) {
		for backend, function := range map[string]string{"kprobe": "security_inode_mkdir", "lsm": "inode_mkdir", "fmod_ret": "security_inode_mkdir"} {
			if w.probes && backend != "kprobe" {
				continue // it is the frames that differ
			}
			t.Run(backend, func(t *testing.T) {
				for _, c := range []struct {
					name   string
					frames []Frame
					holds  bool
				}{
					{"one frame", named("vfs_mkdir"), true},
					{"two frames", named("__x64_sys_mkdirat", "vfs_mkdir"), true},
					{"a gap", named("do_syscall_64", "vfs_mkdir"), w.method == Stack}, // noinstr: cannot be traced
					{"another function", named("vfs_unlink"), false},
					{"one of two", named("vfs_unlink", "vfs_mkdir"), false},
					{"out of order", named("vfs_mkdir", "__x64_sys_mkdirat"), false},
				} {
					if c.name == "a gap" && w.method == State {
						continue
					}
					if backend != "kprobe" && c.name != "two frames" && c.name != "one of two" {
						continue // it is the kind of the program that differs
					}
					h := attachHook(t, attached(t, w, c.frames...), backend, function)
					got := h.during(t, mkdir(t))
					want := seen{Asked: 1}
					if c.holds {
						want.Held = 1
					}
					if got != want {
						t.Errorf("%s: asked and held %v, want %v", c.name, got, want)
					}
					_ = h.link.Close()
				}
			})
		}
	})
}

func TestRecursion(t *testing.T) {
	vm.Need(t)
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(dir, "merged")
	options := "lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Skipf("no overlayfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	file := filepath.Join(merged, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	chmod := func() error { return unix.Chmod(file, 0o640) }
	eachWay(t, func(t *testing.T, w way) {
		for _, c := range []struct {
			name   string
			frames []Frame
			hook   string
			want   seen
		}{
			// notify_change of overlayfs's inode calls notify_change of the one
			// below; ovl_copyattr comes after that has returned.
			{"after the inner call returned", named("notify_change"), "ovl_copyattr", seen{1, 1}},
			{"in the outer and in the inner call", named("notify_change"), "security_inode_setattr", seen{2, 2}},
			{"twice in the chain", named("notify_change", "notify_change"), "security_inode_setattr", seen{2, 1}},
			{"twice, with a function between", named("notify_change", "ovl_setattr", "notify_change"), "security_inode_setattr", seen{2, 1}},
			{"twice, but the inner call has returned", named("notify_change", "notify_change"), "ovl_copyattr", seen{1, 0}},
		} {
			t.Run(c.name, func(t *testing.T) {
				h := attachHook(t, attached(t, w, c.frames...), "kprobe", c.hook)
				for range 3 {
					if got := h.during(t, chmod); got != c.want {
						t.Errorf("asked and held %v, want %v", got, c.want)
					}
				}
			})
		}
	})
}

// reader is a thread that sits in read(2) of an empty pipe until it is let go,
// then runs what it is told, and ends.
type reader struct {
	tid     int
	pipe    [2]int
	control chan func() error
	done    chan error
}

func newReader(t *testing.T) *reader {
	t.Helper()
	r := &reader{control: make(chan func() error), done: make(chan error)}
	if err := unix.Pipe2(r.pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	started := make(chan int)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends
		started <- unix.Gettid()
		for f := range r.control {
			r.done <- f()
		}
		r.done <- nil
	}()
	r.tid = <-started
	t.Cleanup(func() {
		close(r.control)
		if err := <-r.done; err != nil { // it was asked nothing
			t.Error(err)
		}
		_, _ = unix.Close(r.pipe[0]), unix.Close(r.pipe[1])
	})
	return r
}

func (r *reader) do(t *testing.T, f func() error) {
	t.Helper()
	r.control <- f
	r.wait(t)
}

func (r *reader) wait(t *testing.T) {
	t.Helper()
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
}

// read starts a read and returns when the thread sleeps in it.
func (r *reader) read(t *testing.T) {
	t.Helper()
	r.control <- func() error {
		_, err := unix.Read(r.pipe[0], make([]byte, 1))
		return err
	}
	path := fmt.Sprintf("/proc/self/task/%d/syscall", r.tid)
	want := fmt.Sprintf("%d 0x%x ", unix.SYS_READ, r.pipe[0])
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Skipf("no way to see that a thread sleeps: %v", err)
		}
		if strings.HasPrefix(string(text), want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the thread does not sleep in read: %s", text)
		}
	}
}

func (r *reader) release(t *testing.T) {
	t.Helper()
	if _, err := unix.Write(r.pipe[1], []byte{1}); err != nil {
		t.Fatal(err)
	}
	r.wait(t)
}

func TestEachThreadHasItsOwnState(t *testing.T) {
	vm.Need(t)
	eachWay(t, func(t *testing.T, w way) {
		c := attached(t, w, named("ksys_read")...)
		inRead := attachHook(t, c, "fentry", "finish_wait")
		inMkdir := attachHook(t, c, "fentry", "security_path_mkdir")
		r := newReader(t)
		for range 3 {
			r.read(t)
			if got := inMkdir.during(t, mkdir(t)); got != (seen{1, 0}) {
				t.Errorf("another thread while one is inside: asked and held %v, want {1 0}", got)
			}
			r.release(t)
			if got := inRead.of(t, r.tid); got != (seen{1, 1}) {
				t.Errorf("the thread that is inside: asked and held %v, want {1 1}", got)
			}
			r.do(t, mkdir(t))
			if got := inMkdir.of(t, r.tid); got != (seen{1, 0}) {
				t.Errorf("the same thread afterwards: asked and held %v, want {1 0}", got)
			}
		}
	})
}

func TestAttachInTheMiddleOfACall(t *testing.T) {
	vm.Need(t)
	eachWay(t, func(t *testing.T, w way) {
		r := newReader(t)
		r.read(t)
		c := attached(t, w, named("ksys_read")...)
		inRead := attachHook(t, c, "fentry", "finish_wait")
		inMkdir := attachHook(t, c, "fentry", "security_path_mkdir")
		r.release(t)
		want := seen{1, 0} // its entry was not seen
		if w.method == Stack {
			want.Held = 1 // the stack knows
		}
		if got := inRead.of(t, r.tid); got != want {
			t.Errorf("in the call that was under way: asked and held %v, want %v", got, want)
		}
		for range 2 {
			r.do(t, mkdir(t))
			if got := inMkdir.of(t, r.tid); got != (seen{1, 0}) {
				t.Errorf("outside: asked and held %v, want {1 0}", got)
			}
			r.read(t)
			r.release(t)
			if got := inRead.of(t, r.tid); got != (seen{1, 1}) {
				t.Errorf("in a later call: asked and held %v, want {1 1}", got)
			}
		}
		if w.method == State && states(t, c) != 0 {
			t.Error("a state is left")
		}
		// And off while a thread is inside.
		r.read(t)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		r.release(t)
	})
}

// TestReturnsThatAreMissed has more threads inside a function than its
// kretprobe can follow.
func TestReturnsThatAreMissed(t *testing.T) {
	vm.Need(t)
	c := attached(t, way{State, true}, named("ksys_read")...)
	inMkdir := attachHook(t, c, "fentry", "security_path_mkdir")
	var readers []*reader
	for range 40 {
		r := newReader(t)
		r.read(t)
		readers = append(readers, r)
	}
	for _, r := range readers {
		r.release(t)
	}
	left := states(t, c)
	if left == 0 {
		t.Skip("no return was missed: nothing is shown")
	}
	t.Logf("%d returns were missed", left)
	for range 2 {
		for _, r := range readers {
			r.do(t, mkdir(t))
			if got := inMkdir.of(t, r.tid); got != (seen{1, 0}) {
				t.Errorf("after a return that was missed: asked and held %v, want {1 0}", got)
			}
		}
	}
	// Other threads of this process read as well, and ask no hook afterwards.
	if n := states(t, c); n > left/4 {
		t.Errorf("%d states are left", n)
	}
}

func TestThreadsThatEndInsideAFrame(t *testing.T) {
	vm.Need(t)
	c := attached(t, way{method: State}, named("__x64_sys_exit")...)
	h := attachHook(t, c, "fentry", "exit_files")
	held := 0
	for range 20 {
		tid := make(chan int)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends, by exit(2)
			tid <- unix.Gettid()
		}()
		id := <-tid
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", id)); err != nil {
				break
			}
		}
		held += int(h.of(t, id).Asked)
	}
	if held == 0 {
		t.Error("no thread was seen to end: nothing is shown")
	}
	if n := states(t, c); n != 0 {
		t.Errorf("%d states of threads that are gone are left", n)
	}
}

// TestInterruptsAreNotTheThread has the timer's interrupt come while a thread is
// in the kernel.
func TestInterruptsAreNotTheThread(t *testing.T) {
	vm.Need(t)
	zeroes, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = zeroes.Close() }()
	busy := func() error {
		buffer := make([]byte, 16<<20)
		for start := time.Now(); time.Since(start) < 2*time.Second; {
			if _, err := unix.Read(int(zeroes.Fd()), buffer); err != nil {
				return err
			}
		}
		return nil
	}
	for name, frames := range map[string][]Frame{
		"an interrupt on top of a frame":   named("ksys_read"),
		"a frame entered by the interrupt": named("ksys_read", "hrtimer_interrupt"),
	} {
		t.Run(name, func(t *testing.T) {
			h := attachHook(t, attached(t, way{method: State}, frames...), "fentry", "update_process_times")
			got := h.during(t, busy)
			if got.Asked == 0 || got.Held != 0 {
				t.Errorf("asked and held %v, want some and none", got)
			}
		})
	}
}

// TestInterruptsEndNothing has one long system call that the timer interrupts
// some times, with programs of the chain.
func TestInterruptsEndNothing(t *testing.T) {
	vm.Need(t)
	c := attached(t, way{method: State}, named("vfs_readv", "hrtimer_interrupt")...)
	zeroes, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = zeroes.Close() }()
	done := make(chan error)
	go func() {
		buffer := make([]byte, 1<<20)
		vectors := make([][]byte, 1000)
		for i := range vectors {
			vectors[i] = buffer
		}
		_, err := unix.Readv(int(zeroes.Fd()), vectors)
		done <- err
	}()
	inside, outside := 0, 0
	for {
		select {
		case err := <-done:
			t.Logf("inside in %d samples, then outside in %d", inside, outside)
			switch {
			case err != nil:
				t.Fatal(err)
			case inside+outside < 5: // the emulated processors take turns of 100 ms
				t.Skip("the call was too short for interrupts: nothing is shown")
			case inside < outside:
				t.Error("an interrupt took the state of the thread away")
			}
			return
		case <-time.After(10 * time.Millisecond):
			if n := states(t, c); n > 0 {
				inside++
			} else if inside > 0 {
				outside++
			}
		}
	}
}
