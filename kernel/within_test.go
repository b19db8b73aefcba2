package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// readSize marks the reads that are to fail; the Go runtime has none of it.
const readSize = 77

func init() {
	// lookup asks for a name that no cache knows
	acts["lookup"] = func(_ int, act []string) int {
		dir, err := os.MkdirTemp("/tmp", "fresh")
		if err != nil {
			return 252
		}
		err = unix.Access(filepath.Join(dir, act[1]), unix.F_OK)
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		return status(err)
	}
	acts["chmod"] = func(_ int, act []string) int { return status(unix.Chmod(act[1], 0o640)) }
	acts["middle"] = func(int, []string) int { return middle() }
}

// middle has a thread inside read(2) when it says so, and goes on at a line from
// the test. Its status is the number of what went wrong.
func middle() int {
	var pipe, other [2]int
	if unix.Pipe2(pipe[:], unix.O_CLOEXEC) != nil || unix.Pipe2(other[:], unix.O_CLOEXEC) != nil {
		return 200
	}
	read := func(fd int) error {
		_, err := unix.Read(fd, make([]byte, readSize))
		return err
	}
	write := func(fd int) error {
		_, err := unix.Write(fd, make([]byte, readSize))
		return err
	}
	tid, first, second := make(chan int), make(chan error), make(chan error)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		first <- read(pipe[0])
		first <- write(other[1])
		second <- read(other[0])
	}()
	asleep := fmt.Sprintf("%d 0x%x ", unix.SYS_READ, pipe[0])
	path := fmt.Sprintf("/proc/self/task/%d/syscall", <-tid)
	for {
		text, err := os.ReadFile(path)
		if err != nil {
			return 201
		}
		if len(text) > len(asleep) && string(text[:len(asleep)]) == asleep {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println("inside")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return 202
	}
	switch {
	case write(other[1]) != nil:
		return 1 // another thread is inside, not this one
	case read(other[0]) != unix.EIO:
		return 2 // this thread is inside now
	case write(pipe[1]) != nil:
		return 3 // and not any more
	case <-first != nil:
		return 4 // the call that was under way goes on as it began
	case <-first != nil:
		return 5 // and its end is no entry
	case <-second != unix.EIO:
		return 6 // the next one counts
	}
	return 0
}

func inside(frames ...policy.Frame) func(*policy.Rule) {
	return func(r *policy.Rule) { r.Kernel.Within = frames }
}

// K8: a predicate on any frame, the only one and the last one too.
func TestWithinPredicates(t *testing.T) {
	vm.NeedFault(t)
	in, _ := newInjector(t)
	c := testCgroup(t, "/predicates")
	for range 8 { // a new tmpfs has no inode numbers above 5 yet
		if _, err := os.MkdirTemp("/tmp", "number"); err != nil {
			t.Fatal(err)
		}
	}
	bananas := policy.Frame{Function: "d_alloc_parallel", Predicate: `name->name == "bananas" && parent->d_inode->i_ino > 5`}
	never := policy.Frame{Function: "d_alloc_parallel", Predicate: `name->name == "bananas" && parent->d_inode->i_ino == 0`}
	lookup := func(predicate string) policy.Frame {
		return policy.Frame{Function: "filename_lookup", Predicate: predicate}
	}
	for name, x := range map[string]struct {
		frames          []policy.Frame
		bananas, apples unix.Errno
	}{
		"the only frame":           {[]policy.Frame{bananas}, unix.ENOMEM, 0},
		"the last of two":          {[]policy.Frame{lookup(""), bananas}, unix.ENOMEM, 0},
		"the last, never true":     {[]policy.Frame{lookup(""), never}, 0, 0},
		"both":                     {[]policy.Frame{lookup("dfd == -100"), bananas}, unix.ENOMEM, 0},
		"both, the first is false": {[]policy.Frame{lookup("dfd == 3"), bananas}, 0, 0},
		"the first of two":         {[]policy.Frame{lookup("dfd == -100"), {Function: "d_alloc_parallel"}}, unix.ENOMEM, unix.ENOMEM},
	} {
		backends := []string{FmodRet}
		if name == "the last of two" {
			backends = append(backends, Override)
		}
		for _, backend := range backends {
			t.Run(name+" by "+backend, func(t *testing.T) {
				r := rule(HookSlab, "", unix.ENOMEM, inside(x.frames...))
				r.Kernel.Backend = backend
				a := arm(t, in, Fault{ID: "k8", Rule: r, Cgroup: c})
				want(t, c, "lookup bananas", x.bananas)
				want(t, c, "lookup apples", x.apples)
				want(t, outside, "lookup bananas", 0)
				if got := counters(t, a); (got.Matched > 0) != (x.bananas != 0) || got.Matched != got.Injected {
					t.Errorf("counted %+v", got)
				}
				if err := a.Disarm(); err != nil {
					t.Fatal(err)
				}
				want(t, c, "lookup bananas", 0)
			})
		}
	}
}

// K8: armed while a thread is inside the chain, and other threads are not.
func TestWithinInTheMiddle(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/middle")
	cmd := command(t, c, "middle")
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(output).ReadString('\n'); err != nil || line != "inside\n" {
		_ = cmd.Process.Kill()
		t.Fatalf("%q, %v, %v", line, err, cmd.Wait())
	}
	r := rule(HookLSM, "file_permission", unix.EIO, inside(policy.Frame{Function: "ksys_read", Predicate: fmt.Sprintf("count == %d", readSize)}))
	a := arm(t, in, Fault{ID: "middle", Rule: r, Cgroup: c})
	if _, err := io.WriteString(input, "\n"); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its status is what counts
	if got := cmd.ProcessState.ExitCode(); got != 0 {
		t.Errorf("status %d of %s", got, cmd.ProcessState)
	}
	if got := counters(t, a); got.Injected != 2 {
		t.Errorf("counted %+v, want two injections", got)
	}
}

// K8: a function that runs inside itself, as those of overlayfs do.
func TestWithinRecursion(t *testing.T) {
	in, _ := newInjector(t)
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(dir, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir)); err != nil {
		t.Skipf("no overlayfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	nested, plain := filepath.Join(merged, "f"), filepath.Join(dir, "f")
	for _, path := range []string{nested, plain} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := testCgroup(t, "/recursion")
	change := policy.Frame{Function: "notify_change"}
	mode := policy.Frame{Function: "notify_change", Predicate: "attr->ia_valid & 1"} // ATTR_MODE
	for name, frames := range map[string][]policy.Frame{"stack": {change, change}, "state": {mode, mode}} {
		a := arm(t, in, Fault{ID: name, Rule: rule(HookLSM, "inode_setattr", unix.EDQUOT, inside(frames...)), Cgroup: c})
		for range 2 {
			want(t, c, "chmod "+nested, unix.EDQUOT)
			want(t, c, "chmod "+plain, 0)
		}
		if got := counters(t, a); got.Injected != 2 {
			t.Errorf("%s: counted %+v, want two injections", name, got)
		}
		if err := a.Disarm(); err != nil {
			t.Fatal(err)
		}
	}
}

// K6: one call chain of two rules with other hooks, each with its own state.
func TestOneChainOfTwoHooks(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/twohooks")
	chain := inside(policy.Frame{Function: "filename_lookup", Predicate: "dfd == -100"})
	slow := arm(t, in, Fault{ID: "one", Rule: rule(HookLSM, "inode_permission", unix.EACCES, chain, func(r *policy.Rule) { r.Trigger.After = 1 << 40 }), Cgroup: c})
	want(t, c, "lookup apples", 0)
	before := counters(t, slow)
	fast := arm(t, in, Fault{ID: "two", Rule: rule(HookLSM, "inode_getattr", unix.EIO, chain), Cgroup: c})
	if err := fast.Disarm(); err != nil {
		t.Fatal(err)
	}
	want(t, c, "lookup apples", 0)
	after := counters(t, slow)
	if before.Matched == 0 || after.Matched != 2*before.Matched {
		t.Errorf("the first rule counted %+v and then %+v: the second one took its call chain along", before, after)
	}
}
