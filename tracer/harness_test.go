package tracer_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// The targets are programs of test/target. Their files are in one folder; a bind
// mount of it is the second place that files are swapped to: the same files, so
// that a target can check that nothing changed, on another mount, so that the
// test can see that all was swapped.

// targetDir is set once the targets are built, for the removal.
var targetDir string

// prebuilt names a folder with the programs, on a machine without compilers.
const prebuilt = "FAULTGRAFT_TEST_TARGETS"

var buildTarget = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(prebuilt); dir != "" {
		return dir, nil
	}
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return "", errors.New("gcc is not installed: apt install gcc")
	}
	dir, err := os.MkdirTemp("", "faultgraft-target")
	if err != nil {
		return "", err
	}
	targetDir = dir
	for _, static := range [][]string{{"-o", dir + "/target"}, {"-static", "-o", dir + "/target-static"}} {
		args := append([]string{"-O2", "-pthread", "../test/target/target.c"}, static...)
		if out, err := exec.Command(gcc, args...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("gcc: %v\n%s", err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	if os.Getenv("TRACER_TEST_SWAP") != "" {
		swapAndDie()
		return
	}
	if os.Getenv(hangEnv) != "" {
		beHung()
		return
	}
	if os.Getenv(toldEnv) != "" {
		beTold()
		return
	}
	if os.Getenv(frozenEnv) != "" {
		lookFrozen()
		return
	}
	code := m.Run()
	if targetDir != "" {
		_ = os.RemoveAll(targetDir)
	}
	os.Exit(code)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: ptrace, mounts")
	}
}

// place is a folder and a bind mount of it.
type place struct {
	a, b       string
	mntA, mntB uint64
}

func newPlace(t testing.TB) *place {
	t.Helper()
	needRoot(t)
	base, err := os.MkdirTemp("", "faultgraft-swap")
	if err != nil {
		t.Fatal(err)
	}
	p := &place{a: base + "/a", b: base + "/b"}
	t.Cleanup(func() {
		for _, m := range []string{p.a, p.b} {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
				t.Errorf("unmount %s: %v", m, err)
			}
		}
		_ = os.RemoveAll(base)
	})
	for _, d := range []string{p.a, p.b, base + "/files"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []string{p.a, p.b} { // two mounts, neither of which anything else is on
		if err := unix.Mount(base+"/files", m, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	p.mntA, p.mntB = mountID(t, p.a), mountID(t, p.b)
	return p
}

func mountID(t testing.TB, path string) uint64 {
	t.Helper()
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &x); err != nil {
		t.Fatal(err)
	}
	return x.Mnt_id
}

// process is a target.
type process struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Reader
	ended bool
}

func start(t testing.TB, program string, args ...string) *process {
	t.Helper()
	return startWith(t, &syscall.SysProcAttr{}, nil, program, args...)
}

// startWith also gives the process files, from descriptor 3 on.
func startWith(t testing.TB, attr *syscall.SysProcAttr, files []*os.File, program string, args ...string) *process {
	t.Helper()
	dir, err := buildTarget()
	if err != nil {
		t.Skip(err)
	}
	if !filepath.IsAbs(program) {
		program = filepath.Join(dir, program)
	}
	p := &process{t: t, cmd: exec.Command(program, args...)}
	p.cmd.Stderr = os.Stderr
	// System V queues end with the name space
	attr.Cloneflags, attr.Setpgid = syscall.CLONE_NEWIPC, true
	p.cmd.SysProcAttr, p.cmd.ExtraFiles = attr, files
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	p.want("ready")
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) kill() {
	if p.ended {
		return
	}
	p.ended = true
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL) // its own group: the children too
	_ = p.cmd.Wait()
}

func (p *process) read() string {
	p.t.Helper()
	type answer struct {
		s   string
		err error
	}
	ch := make(chan answer, 1)
	go func() {
		s, err := p.lines.ReadString('\n')
		ch <- answer{s, err}
	}()
	select {
	case a := <-ch:
		if a.err != nil {
			p.t.Fatalf("target: %v after %q", a.err, a.s)
		}
		return strings.TrimSpace(a.s)
	case <-time.After(30 * time.Second):
		p.t.Fatalf("target %d does not answer\n%s", p.pid(), threadStates(p.pid()))
		return ""
	}
}

func threadStates(pid int) string {
	var b strings.Builder
	dirs, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, d := range dirs {
		st, _ := os.ReadFile(d + "/stat")
		sc, _ := os.ReadFile(d + "/syscall")
		fmt.Fprintf(&b, "%s: %s %s", d, regexp.MustCompile(`\) .`).Find(st), sc)
	}
	return b.String()
}

func (p *process) want(s string) {
	p.t.Helper()
	if got := p.read(); got != s && !strings.HasPrefix(got, s+" ") {
		p.t.Fatalf("target says %q, not %q", got, s)
	}
}

func (p *process) say(s string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, s+"\n"); err != nil {
		p.t.Fatalf("target: %v", err)
	}
}

func (p *process) check() {
	p.t.Helper()
	p.say("check")
	p.want("ok")
}

// quit ends the target, which must be content.
func (p *process) quit() {
	p.t.Helper()
	p.say("quit")
	p.want("ok")
	p.end()
}

func (p *process) end() {
	p.t.Helper()
	if p.ended {
		return
	}
	_ = p.in.Close()
	p.ended = true
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("target: %v", err)
	}
}

// tree lists a process and its descendants.
func tree(pid int) ([]int, error) {
	r := []int{pid}
	for i := 0; i < len(r); i++ {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", r[i]))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				continue // ended
			}
			for _, s := range strings.Fields(string(b)) {
				n, _ := strconv.Atoi(s)
				if !slices.Contains(r, n) {
					r = append(r, n)
				}
			}
		}
	}
	return r, nil
}

// swapper swaps a target between the two mounts.
type swapper struct {
	t    testing.TB
	at   *place
	pid  int
	kept []keptFile // what was replaced, to give it back
}

type keptFile struct {
	was int    // what was there
	is  int    // what we gave for it
	ino uint64 // of what we gave
}

func newSwapper(t testing.TB, at *place, pid int) *swapper {
	s := &swapper{t: t, at: at, pid: pid}
	t.Cleanup(s.drop)
	return s
}

func (s *swapper) drop() {
	for _, k := range s.kept {
		_ = unix.Close(k.was)
		_ = unix.Close(k.is)
	}
	s.kept = nil
}

func special(mode uint32) bool {
	f := mode & unix.S_IFMT
	return f != unix.S_IFREG && f != unix.S_IFDIR
}

// forward are the options for a swap from mount a to mount b.
func (s *swapper) forward() tracer.Options {
	return tracer.Options{
		Processes: func() ([]int, error) { return tree(s.pid) },
		Match:     func(o *tracer.Object) bool { return o.MountID == s.at.mntA && !special(o.Mode) },
		Replace: func(d *tracer.Description) (int, error) {
			fd, err := s.open(d)
			if err != nil || d.Kind != tracer.Descriptor {
				return fd, err
			}
			s.kept = append(s.kept, keptFile{dup(s.t, d.File), dup(s.t, fd), inode(s.t, fd)})
			return fd, nil
		},
		RequireAll: true,
		Deadline:   deadline,
	}
}

// deadline is the default but on a machine that is emulated: its seconds are short.
var deadline, _ = time.ParseDuration(os.Getenv("FAULTGRAFT_TEST_DEADLINE"))

func (s *swapper) open(d *tracer.Description) (int, error) {
	flags := d.Flags&^(unix.O_CREAT|unix.O_EXCL|unix.O_TRUNC) | unix.O_CLOEXEC
	if d.Flags&unix.O_TMPFILE == unix.O_TMPFILE {
		flags &^= unix.O_TMPFILE
	}
	if !d.Deleted {
		rel, ok := strings.CutPrefix(d.Path, s.at.a)
		if !ok {
			return -1, fmt.Errorf("%s is not under %s", d.Path, s.at.a)
		}
		return unix.Open(s.at.b+rel, flags, 0)
	}
	// a copy of what has no name any more
	f, err := os.CreateTemp(s.at.b, "copy")
	if err != nil {
		return -1, err
	}
	defer func() { _ = f.Close() }()
	defer func() { _ = os.Remove(f.Name()) }()
	buf := make([]byte, 1<<16)
	n, err := unix.Pread(d.File, buf, 0)
	if err != nil {
		return -1, err
	}
	if _, err := f.Write(buf[:n]); err != nil {
		return -1, err
	}
	return unix.Open(f.Name(), flags, 0)
}

// backward are the options for the way back: the very descriptions return.
func (s *swapper) backward() tracer.Options {
	return tracer.Options{
		Processes: func() ([]int, error) { return tree(s.pid) },
		Match:     func(o *tracer.Object) bool { return o.MountID == s.at.mntB && !special(o.Mode) },
		Replace: func(d *tracer.Description) (int, error) {
			if d.Kind != tracer.Descriptor {
				return unix.Open(s.at.a+strings.TrimPrefix(d.Path, s.at.b), d.Flags|unix.O_CLOEXEC, 0)
			}
			for _, k := range s.kept {
				if k.ino == d.Ino && same(k.is, d.File) {
					return unix.FcntlInt(uintptr(k.was), unix.F_DUPFD_CLOEXEC, 0)
				}
			}
			return -1, fmt.Errorf("%s was never swapped", d.Path)
		},
		RequireAll: true,
		NeverEmpty: true,
	}
}

func same(a, b int) bool {
	self := uintptr(os.Getpid())
	r, _, e := unix.Syscall6(unix.SYS_KCMP, self, self, 0, uintptr(a), uintptr(b), 0)
	return e == 0 && r == 0
}

func inode(t testing.TB, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func dup(t testing.TB, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func swap(t testing.TB, o tracer.Options) *tracer.Report {
	t.Helper()
	r, err := tracer.Swap(context.Background(), o)
	if err != nil {
		t.Fatalf("swap: %v", err)
	}
	return r
}

// state is everything of a process that a swap to and fro must leave as it is.
func state(t testing.TB, pids ...int) string {
	t.Helper()
	var b strings.Builder
	for _, pid := range pids {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fds {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			link, _ := os.Readlink(strings.Replace(f, "fdinfo", "fd", 1))
			fmt.Fprintf(&b, "%s %s\n%s", f, link, text)
		}
		for _, l := range []string{"cwd", "root"} {
			link, _ := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, l))
			fmt.Fprintf(&b, "%d %s %s\n", pid, l, link)
		}
		b.WriteString(maps(t, pid))
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			switch k, _, _ := strings.Cut(line, ":"); k {
			case "TracerPid", "SigBlk", "SigPnd", "ShdPnd", "Threads", "VmLck":
				b.WriteString(line)
			}
		}
		lim, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			t.Fatal(err)
		}
		b.Write(lim)
	}
	return b.String()
}

func maps(t testing.TB, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func sameState(t testing.TB, before, after string) {
	t.Helper()
	if before == after {
		return
	}
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Fatalf("state differs: before\n%s\nafter\n%s", strings.Join(a[max(0, i-4):min(len(a), i+4)], "\n"), strings.Join(b[max(0, i-4):min(len(b), i+4)], "\n"))
		}
	}
	t.Fatalf("state differs in length: %d lines before, %d after", len(a), len(b))
}

// onMount counts the objects of processes on a mount, by what is in /proc.
func onMount(t testing.TB, mount uint64, pids ...int) (n int) {
	t.Helper()
	want := []byte(fmt.Sprintf("mnt_id:\t%d\n", mount))
	for _, pid := range pids {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
		for _, f := range fds {
			if text, err := os.ReadFile(f); err == nil && bytes.Contains(text, want) {
				var st unix.Stat_t
				if unix.Stat(strings.Replace(f, "fdinfo", "fd", 1), &st) == nil && !special(st.Mode) {
					n++
				}
			}
		}
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/map_files/*", pid))
		for _, l := range append(links, fmt.Sprintf("/proc/%d/cwd", pid)) {
			var x unix.Statx_t
			if unix.Statx(unix.AT_FDCWD, l, 0, unix.STATX_MNT_ID, &x) == nil && x.Mnt_id == mount {
				n++
			}
		}
	}
	return n
}

func openFiles(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
