package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// actVariable makes this test program do one thing and report by its exit
// status, since a process whose allocations fail cannot print: 0, or an errno.
const actVariable = "FAULTGRAFT_TEST_ACT"

func TestMain(m *testing.M) {
	if act := os.Getenv(actVariable); act != "" {
		os.Exit(perform(strings.Fields(act)))
	}
	os.Exit(m.Run())
}

func perform(act []string) int {
	runtime.LockOSThread() // names are of threads
	n := 1
	if len(act) > 1 {
		n, _ = strconv.Atoi(act[1])
	}
	do, ok := acts[act[0]]
	if !ok {
		return 250
	}
	return do(n, act)
}

func status(err error) int {
	var e syscall.Errno
	if errors.As(err, &e) {
		return int(e)
	} else if err != nil {
		return 251
	}
	return 0
}

func mountOnce() error {
	_ = os.Mkdir("/tmp/m", 0o755) // or it is there
	err := unix.Mount("none", "/tmp/m", "tmpfs", 0, "size=4k")
	if err == nil {
		err = unix.Unmount("/tmp/m", unix.MNT_DETACH)
	}
	return err
}

func socketOnce() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// connectOnce makes a connection of TCP on the loopback device, both ends of
// which this thread serves: what arrives is handled in its softirqs.
func connectOnce() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return errors.Join(c.Close(), l.Close())
}

// hold arms a fault in this process, says so, and waits to be killed. The words
// are: hold, seconds of ttl, path of the cgroup, directory for pins or nothing.
func hold(ttl int, words []string) int {
	c, err := CgroupAt(words[2])
	if err != nil {
		return 240
	}
	r := rule(HookSyscall, "mount", unix.ENOMEM)
	r.Trigger.TTL = time.Duration(ttl) * time.Second
	o, f := Options{OnEvent: func(Event) {}}, Fault{ID: "held", Rule: r, Cgroup: c}
	if len(words) > 3 {
		o.PinDir, f.Outlive, o.OnEvent = words[3], true, nil
	}
	in, err := New(o)
	if err == nil {
		_, err = in.Arm(context.Background(), f)
	}
	if err != nil {
		fmt.Println(err)
		return 241
	}
	fmt.Println("armed")
	time.Sleep(time.Hour)
	return 0
}

// writeFile writes a file without waiting for the disk.
func writeFile(path string) error {
	return os.WriteFile(path, make([]byte, 64<<10), 0o644)
}

var acts = map[string]func(n int, act []string) int{
	"mount": func(int, []string) int { return status(mountOnce()) },
	// mounts n times and says how many failed
	"mounts": func(n int, _ []string) int {
		failed := 0
		for range n {
			if mountOnce() != nil {
				failed++
			}
		}
		return failed
	},
	// pattern prints for each of n sockets whether it failed
	"pattern": func(n int, _ []string) int {
		b := make([]byte, n)
		for i := range b {
			b[i] = '.'
			if socketOnce() != nil {
				b[i] = 'x'
			}
		}
		fmt.Println(string(b))
		return 0
	},
	// threads makes sockets in n threads, 100 each, and prints how often EXDEV came instead
	"threads": func(n int, _ []string) int {
		var wg sync.WaitGroup
		var mu sync.Mutex
		total := 0
		for range n {
			wg.Go(func() {
				hits := 0
				for range 100 {
					if socketOnce() == unix.EXDEV {
						hits++
					}
				}
				mu.Lock()
				total += hits
				mu.Unlock()
			})
		}
		wg.Wait()
		fmt.Println(total)
		return 0
	},
	// forks makes n children that mount, and says (up to 255) how many did not fail with ENOMEM
	"forks": func(n int, _ []string) int {
		odd := 0
		for range n {
			if forkMount() != int(unix.ENOMEM) {
				odd++
			}
		}
		return min(odd, 255)
	},
	"umount": func(int, []string) int { return status(unix.Unmount("/nowhere", 0)) },
	"mkdir": func(int, []string) int {
		err := unix.Mkdir("/tmp/made", 0o755)
		_ = unix.Rmdir("/tmp/made")
		return status(err)
	},
	"socket": func(int, []string) int { return status(socketOnce()) },
	// forkedas takes a name and has a fork mount, which has executed nothing
	"forkedas": func(_ int, words []string) int {
		if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.StringData(words[2]+"\x00"))), 0, 0, 0); err != nil {
			return 252
		}
		return forkMount()
	},
	"connect": func(int, []string) int { return status(connectOnce()) },
	"write":   func(_ int, words []string) int { return status(writeFile(words[2])) },
	"hold":    hold,
	"outlive": outlive,
	// pipe writes a page into a pipe
	"pipe": func(int, []string) int {
		var fds [2]int
		if err := unix.Pipe(fds[:]); err != nil {
			return 252
		}
		_, err := unix.Write(fds[1], make([]byte, 4096))
		return status(err)
	},
	"pause":   func(int, []string) int { time.Sleep(time.Hour); return 0 },
	"nothing": func(int, []string) int { return 0 },
	// direct reads a block of the disk past all caches
	"direct": func(int, []string) int {
		fd, err := unix.Open(os.Getenv("FAULTGRAFT_VM_DISK"), unix.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			return 252
		}
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return 253
		}
		_, err = unix.Read(fd, b)
		return status(err)
	},
}

// forkMount forks, has the child mount without executing anything, and gives
// the child's errno. The child makes system calls only: nothing else of Go works
// there.
//
//go:norace
func forkMount() int {
	fstype, at := [...]byte{'t', 'm', 'p', 'f', 's', 0}, [...]byte{'/', 't', 'm', 'p', '/', 'm', 0}
	_ = os.Mkdir("/tmp/m", 0o755) // or it is there
	var st unix.WaitStatus
	pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 {
		return 254
	}
	if pid == 0 {
		_, _, e = unix.RawSyscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(&fstype)), uintptr(unsafe.Pointer(&at)), uintptr(unsafe.Pointer(&fstype)), unix.MS_RDONLY, 0, 0)
		for {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(e), 0, 0)
		}
	}
	if _, err := unix.Wait4(int(pid), &st, 0, nil); err != nil {
		return 253
	}
	if st.ExitStatus() == 0 {
		_ = unix.Unmount("/tmp/m", unix.MNT_DETACH)
	}
	return st.ExitStatus()
}

// testCgroup is a cgroup that goes with the test.
func testCgroup(t *testing.T, name string) Cgroup {
	t.Helper()
	root, err := hierarchy()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroup(t, dir) })
	c, err := CgroupAt(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func removeCgroup(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("remove cgroup: %v", err)
			return
		}
	}
}

// command is this program, to act in a cgroup, or outside of all with the zero one.
func command(t *testing.T, c Cgroup, act string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), actVariable+"="+act)
	cmd.Stderr = os.Stderr
	if c.dir == "" {
		return cmd
	}
	f, err := os.Open(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	return cmd
}

// act acts and gives the exit status and what was printed.
func act(t *testing.T, c Cgroup, what string) (int, string) {
	t.Helper()
	cmd := command(t, c, what)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", what, err)
	}
	return cmd.ProcessState.ExitCode(), strings.TrimSpace(string(out))
}

func want(t *testing.T, c Cgroup, what string, errno unix.Errno) {
	t.Helper()
	if got, _ := act(t, c, what); got != int(errno) {
		t.Errorf("%s in %q: status %d (%s), want %d (%s)", what, c.Path, got, unix.ErrnoName(unix.Errno(got)), int(errno), unix.ErrnoName(errno))
	}
}

// outside is the cgroup that the tests run in.
var outside Cgroup

type recorder struct {
	mu     sync.Mutex
	events []Event
}

func (r *recorder) add(e Event) { r.mu.Lock(); r.events = append(r.events, e); r.mu.Unlock() }

func (r *recorder) all() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Event(nil), r.events...)
}

// newInjector is one that must leave nothing in the kernel.
func newInjector(t *testing.T) (*Injector, *recorder) {
	t.Helper()
	vm.Need(t)
	before := kernelObjects(t)
	r := &recorder{}
	in, err := New(Options{OnEvent: r.add})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		sameObjects(t, before)
	})
	return in, r
}

func arm(t *testing.T, in *Injector, f Fault) *Armed {
	t.Helper()
	a, err := in.Arm(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s on %v; %s", f.ID, a.Backend(), a.Functions(), a.Note())
	return a
}

// rule is a kernel rule with a trigger that always fires.
func rule(kind, name string, errno unix.Errno, change ...func(*policy.Rule)) policy.Rule {
	r := policy.Rule{
		Name:    "test",
		Kernel:  &policy.KernelFault{Hook: policy.Hook{Kind: kind, Name: name}, Error: policy.Errno(errno)},
		Trigger: policy.Trigger{P: 1, TTL: time.Hour, Seeded: true},
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func counters(t *testing.T, a *Armed) Counters {
	t.Helper()
	c, err := a.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}
