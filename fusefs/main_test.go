package fusefs_test

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/policy"
)

// inner marks the test process proper. The process that `go test` starts runs
// it in a mount namespace of its own, so that no mount can be left behind, and
// aborts its FUSE connections should it hang: a process that serves a mount and
// has files of it open cannot be killed otherwise.
const inner = "FUSEFS_TEST_INNER"

func TestMain(m *testing.M) {
	if os.Getenv(actorEnv) != "" {
		os.Exit(act())
	}
	if os.Getenv(serverEnv) != "" {
		os.Exit(serveForTest())
	}
	if os.Getenv(victimEnv) != "" {
		os.Exit(serveUntilKilled())
	}
	if os.Getenv(callerEnv) != "" {
		os.Exit(makeCalls())
	}
	flag.Parse()
	if os.Getenv(inner) != "" || unusable() != "" {
		runtime.LockOSThread() // keeps tests off the main thread, whose descriptors /proc/self shows even if it has its own
		os.Exit(m.Run())
	}
	os.Exit(supervise())
}

// unusable says why no layer can be mounted here, "" if one can.
func unusable() string {
	if os.Geteuid() != 0 {
		return "needs root"
	}
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		return "needs /dev/fuse: " + err.Error()
	}
	return ""
}

func supervise() int {
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	// A process that is started here closes the layer's files in its execve(2), which waits for the layer, while the thread
	// that started it waits in vfork(2), where it cannot be stopped: a garbage collection at that moment, which first stops
	// every thread, would never end. There is none before the memory below is used up.
	cmd.Env = append(os.Environ(), inner+"=1", "GOGC=off", "GOMEMLIMIT=6GiB",
		"GODEBUG=asyncpreemptoff=1") // nor does the scheduler send its threads signals, by which calls that wait for a rule would end with EINTR
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	_ = w.Close()
	var mu sync.Mutex
	var conns []string
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			mu.Lock()
			conns = append(conns, s.Text())
			mu.Unlock()
		}
	}()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	limit := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration)
	if limit == 0 {
		limit = time.Hour
	}
	select {
	case err = <-done:
	case <-time.After(limit + 8*time.Second):
		mu.Lock()
		abort(slices.DeleteFunc(conns, func(c string) bool { return !mounted(cmd.Process.Pid, c) }))
		mu.Unlock()
		_ = cmd.Process.Kill()
		err = <-done
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// mounted reports whether a connection's mount is there still: the number of one that is gone may be another's by now, of
// tests beside these.
func mounted(pid int, connection string) bool {
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	return err == nil && strings.Contains(string(mounts), " 0:"+connection+" ")
}

// abort ends FUSE connections through a fusectl mount that only this thread sees.
func abort(conns []string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		dir, err := os.MkdirTemp("", "fusectl")
		if err == nil {
			err = unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		}
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("fusectl", dir, "fusectl", 0, "")
		}
		for _, c := range conns {
			if err == nil {
				_ = os.WriteFile(filepath.Join(dir, c, "abort"), []byte("1"), 0o200) // those that have ended are not there
			}
		}
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = os.Remove(dir)
		fmt.Fprintln(os.Stderr, "the tests hang: FUSE connections aborted", err)
	}()
	<-done
}

// bench is a layer over a directory or file.
type bench struct {
	testing.TB
	*fusefs.Layer
	back string // what lies under it
	mnt  string // where it is mounted

	mu     sync.Mutex
	events []fusefs.Event
}

type setup struct {
	back      string // a new directory if empty
	root      int    // an O_PATH descriptor of back, for one that another mount namespace shows otherwise; opened if 0
	prefix    string // "/data" if empty
	noDefault bool   // mount without default_permissions
	readOnly  bool
	direct    bool // for tests in which rules come after files are open
	scope     func(uint32) bool
	released  func(uint64)
	retire    func()
}

// over mounts a layer and takes it off at the end of the test.
func over(t testing.TB, s setup) *bench {
	t.Helper()
	if why := unusable(); why != "" {
		t.Skip(why)
	}
	b := &bench{TB: t, back: s.back}
	if b.back == "" {
		b.back = t.TempDir()
		must(t, os.Chmod(filepath.Dir(b.back), 0o755)) // for tests that are not root
	}
	fi, err := os.Stat(b.back)
	must(t, err)
	b.mnt = filepath.Join(t.TempDir(), "mnt")
	mode := unix.S_IFDIR
	if fi.IsDir() {
		must(t, os.Mkdir(b.mnt, 0o755))
	} else {
		mode = unix.S_IFREG
		must(t, os.WriteFile(b.mnt, nil, 0o644))
	}
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	mount := detachedMount(t, dev, mode, s)
	root := s.root
	if root == 0 {
		root, err = unix.Open(b.back, unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
	}
	if s.prefix == "" {
		s.prefix = "/data"
	}
	b.Layer, err = fusefs.New(fusefs.Options{Device: dev, Root: root, Prefix: s.prefix, Scope: s.scope, Released: s.released, Direct: s.direct, Retire: s.retire, Record: func(e fusefs.Event) {
		b.mu.Lock()
		b.events = append(b.events, e)
		b.mu.Unlock()
	}})
	must(t, err)
	t.Cleanup(func() {
		_ = unix.Unmount(b.mnt, unix.MNT_DETACH) // not there if a step above failed
		_ = unix.Close(mount)
		done := make(chan struct{})
		go func() { b.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Error("the connection did not end: something still has a file of the mount open\n" + openFiles(b.mnt))
		}
	})
	must(t, b.Serve())
	must(t, unix.MoveMount(mount, "", unix.AT_FDCWD, b.mnt, unix.MOVE_MOUNT_F_EMPTY_PATH))
	noPoll(t, b.mnt, b.back, fi.IsDir())
	report(b.mnt)
	return b
}

// report tells the process that supervises this one which connection a mount has, so that a hang can be ended.
func report(mnt string) {
	if f := os.NewFile(3, "report"); f != nil {
		var st unix.Stat_t
		if unix.Stat(mnt, &st) == nil {
			_, _ = fmt.Fprintln(f, unix.Minor(st.Dev))
		}
		reports = append(reports, f)
	}
}

// noPoll makes the kernel learn that the file system has no poll. Go registers
// each file that it opens with epoll, in a call that keeps its processor, so
// that a process that serves what it opens could wait for itself.
func noPoll(t testing.TB, mnt, back string, dir bool) {
	if dir {
		f, err := os.CreateTemp(back, "poll")
		must(t, err)
		must(t, f.Close())
		defer func() { must(t, os.Remove(f.Name())) }()
		mnt = filepath.Join(mnt, filepath.Base(f.Name()))
	}
	fd, err := unix.Open(mnt, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	must(t, err)
}

func init() {
	fusefs.MountForTest = func(t testing.TB) (*fusefs.Layer, string, string) {
		b := over(t, setup{})
		return b.Layer, b.back, b.mnt
	}
}

var reports []*os.File // kept, so that no finalizer closes descriptor 3

func detachedMount(t testing.TB, dev, mode int, s setup) int {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer func() { _ = unix.Close(fs) }()
	set := func(cmd uint, k, v string) {
		t.Helper()
		var kp, vp *byte
		if k != "" {
			kp, _ = unix.BytePtrFromString(k)
		}
		if v != "" {
			vp, _ = unix.BytePtrFromString(v)
		}
		if _, _, e := unix.Syscall6(unix.SYS_FSCONFIG, uintptr(fs), uintptr(cmd), uintptr(unsafe.Pointer(kp)), uintptr(unsafe.Pointer(vp)), 0, 0); e != 0 {
			t.Fatalf("fsconfig %s=%s: %v", k, v, e)
		}
	}
	set(unix.FSCONFIG_SET_STRING, "source", "faultgraft")
	set(unix.FSCONFIG_SET_STRING, "fd", fmt.Sprint(dev))
	set(unix.FSCONFIG_SET_STRING, "rootmode", fmt.Sprintf("%o", mode))
	set(unix.FSCONFIG_SET_STRING, "user_id", "0")
	set(unix.FSCONFIG_SET_STRING, "group_id", "0")
	set(unix.FSCONFIG_SET_FLAG, "allow_other", "")
	if !s.noDefault {
		set(unix.FSCONFIG_SET_FLAG, "default_permissions", "")
	}
	set(unix.FSCONFIG_CMD_CREATE, "", "")
	attr := 0
	if s.readOnly {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	must(t, err)
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bench) path(name string) string  { return filepath.Join(b.mnt, name) }
func (b *bench) under(name string) string { return filepath.Join(b.back, name) }

// rules sets rules written in the rule language.
func (b *bench) rules(texts ...string) {
	b.Helper()
	must(b, b.SetRules(parse(b, texts...), time.Now()))
}

func parse(t testing.TB, texts ...string) []policy.Rule {
	t.Helper()
	var out []policy.Rule
	for i, s := range texts {
		r, err := policy.ParseRule(fmt.Sprintf("r%d", i), s, policy.Defaults{Path: "/data/**"})
		must(t, err)
		out = append(out, r)
	}
	return out
}

// recorded takes the events so far.
func (b *bench) recorded() []fusefs.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.events
	b.events = nil
	return e
}

func (b *bench) write(name, data string) {
	b.Helper()
	must(b, os.WriteFile(b.under(name), []byte(data), 0o644))
}

// open opens a file of the layer and closes it at the end.
func (b *bench) open(name string, flags int) int {
	b.Helper()
	fd, err := unix.Open(b.path(name), flags|unix.O_CLOEXEC, 0o644)
	must(b, err)
	b.Cleanup(func() { closeBelow(fd, b.mnt) })
	return fd
}

// asUser runs f on a thread with other file system ids, as a caller that is not root.
func asUser(t testing.TB, uid, gid int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
			t.Error(e)
			return
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
			t.Error(e)
			return
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			t.Error(e)
			return
		}
		f()
	}()
	<-done
}

// closeBelow closes a descriptor of a file below one of the paths, unless the
// test has closed it: its number may be somebody else's by now.
func closeBelow(fd int, paths ...string) {
	to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil && slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(to, p) }) {
		_ = unix.Close(fd) // nothing was written through it that is looked at
	}
}

func names(t testing.TB, dir string) string {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	defer func() { _ = f.Close() }()
	list, err := f.Readdirnames(-1)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return strings.Join(list, " ")
}

// openFiles lists our descriptors below a path.
func openFiles(below string) string {
	var out []string
	list, _ := filepath.Glob("/proc/self/fd/*")
	for _, f := range list {
		if to, err := os.Readlink(f); err == nil && strings.HasPrefix(to, below) {
			out = append(out, filepath.Base(f)+" "+to)
		}
	}
	return strings.Join(out, "\n")
}
