package fusefs_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/policy"
)

// serverEnv has the test program serve one layer, until its mount is gone or it is killed. The first line of its input is a serverJob.
const serverEnv = "FUSEFS_TEST_SERVER"

type serverJob struct {
	Back, Mnt string
	Holder    int // who holds the descriptors of the server before; 0 for the first
	Rules     []policy.Rule
	Start     time.Time
}

// Descriptors of a server: the state's files from here on, then the lifeline of holders.
const (
	serverState    = 3
	serverLifeline = 8
)

// serveForTest is the server. It tells its holder on standard output, and answers to commands.
func serveForTest() int {
	in := bufio.NewScanner(os.Stdin)
	if !in.Scan() {
		return 0 // it was not needed
	}
	var job serverJob
	err := json.Unmarshal(in.Bytes(), &job)
	if err == nil {
		err = job.serve(in)
	}
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

func (job *serverJob) serve(in *bufio.Scanner) error {
	holder, err := holdDescriptors(serverLifeline)
	if err != nil {
		return err
	}
	state, err := fusefs.OpenState([]int{serverState, serverState + 1, serverState + 2, serverState + 3, serverState + 4})
	if err != nil {
		return err
	}
	o := fusefs.Options{Prefix: "/data", State: state, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	var l *fusefs.Layer
	if job.Holder == 0 {
		l, err = job.begin(o)
	} else {
		l, err = job.takeOver(o)
	}
	if err != nil {
		return err
	}
	fmt.Println("serving", holder)
	for in.Scan() {
		switch in.Text() {
		case "rules":
			b, err := json.Marshal(l.Rules())
			fmt.Println(string(b), err)
		case "faults":
			n := uint64(0)
			for _, f := range l.Faults() {
				n += f.N
			}
			fmt.Println(n)
		case "forget":
			fusefs.DropNames(l)
			fmt.Println("dropped")
		case "resumable":
			fmt.Println(l.CanResume())
		case "wait":
			l.Wait()
			fmt.Println("ended")
			return nil
		}
	}
	return nil // whoever tests has died: so does the mount, with the last process of its namespace
}

func (job *serverJob) begin(o fusefs.Options) (*fusefs.Layer, error) {
	var err error
	if o.Device, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if o.Root, err = unix.Open(job.Back, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", o.Device)
	if err := unix.Mount("faultgraft", job.Mnt, "fuse", 0, data); err != nil {
		return nil, err
	}
	l, err := fusefs.New(o)
	if err != nil {
		return nil, err
	}
	if err := l.Serve(); err != nil {
		return nil, err
	}
	return l, l.SetRules(job.Rules, job.Start)
}

func (job *serverJob) takeOver(o fusefs.Options) (*fusefs.Layer, error) {
	pidfd, err := unix.PidfdOpen(job.Holder, 0)
	if err != nil {
		return nil, err
	}
	l, err := fusefs.Restore(o, func(fd int) (int, error) { return unix.PidfdGetfd(pidfd, fd, 0) })
	if err != nil {
		return nil, err
	}
	if err := l.SetRules(job.Rules, job.Start); err != nil {
		return nil, err
	}
	if err := endProcess(pidfd); err != nil {
		return nil, err
	}
	return l, l.Resume()
}

// endProcess kills a process and waits until it is gone, descriptors included.
func endProcess(pidfd int) error {
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 30_000)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			return fmt.Errorf("a process does not end")
		}
		return err
	}
}

// holdDescriptors makes a process that shares this one's descriptor table, until the other end of a pipe is closed. It runs
// system calls only: there is no Go runtime in it.
func holdDescriptors(lifeline int) (pid int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	all, old := ^uint64(0), uint64(0)
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	p, e := cloneHolder(lifeline)
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(p), nil
}

//go:norace
//go:nosplit
func cloneHolder(lifeline int) (uintptr, syscall.Errno) {
	p := unix.PollFd{Fd: int32(lifeline)}
	pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if pid != 0 || e != 0 {
		return pid, e
	}
	for p.Revents == 0 {
		_, _, _ = syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, 0, 0, 0, 0)
	}
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// served is a layer that a process of its own serves, which can be killed.
type served struct {
	testing.TB
	job      serverJob
	state    *fusefs.State
	lifeline *os.File
	pipe     *os.File
	*serverProcess
	// standby is the next server. It is started while one serves: a process that is started here closes the files of the
	// layer that this one has open in its execve(2), and waits for the layer.
	standby *serverProcess
	kills   int
}

type serverProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// serve starts a server with rules.
func serve(t testing.TB, rules ...string) *served {
	t.Helper()
	if why := unusable(); why != "" {
		t.Skip(why)
	}
	s := &served{TB: t, job: serverJob{Back: t.TempDir(), Mnt: t.TempDir(), Rules: parse(t, rules...), Start: time.Now()}}
	var err error
	s.state, err = fusefs.NewState()
	must(t, err)
	s.lifeline, s.pipe, err = os.Pipe()
	must(t, err)
	t.Cleanup(func() {
		_ = unix.Unmount(s.job.Mnt, unix.MNT_DETACH) // not there if it could not be mounted
		if s.standby != nil {
			_ = s.standby.in.Close()
			if err := s.standby.cmd.Wait(); err != nil {
				t.Errorf("the server that was not needed: %v", err)
			}
		}
		if s.serverProcess != nil {
			if got := s.ask("wait"); got != "ended" {
				t.Errorf("the server ended with %q", got)
			}
			if err := s.cmd.Wait(); err != nil {
				t.Errorf("the server: %v", err)
			}
		}
		_ = s.pipe.Close() // ends the last holder
		_ = s.lifeline.Close()
		must(t, s.state.Close())
	})
	s.prepare()
	s.start()
	report(s.job.Mnt)
	if got := s.ask("resumable"); got != "true" {
		t.Fatalf("another server could not follow: %s", got)
	}
	return s
}

// prepare starts a server that waits for its job.
func (s *served) prepare() {
	s.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serverEnv+"=1")
	cmd.Stderr = os.Stderr
	for _, fd := range s.state.Files() {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		must(s, err)
		f := os.NewFile(uintptr(d), "state")
		defer func() { _ = f.Close() }()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, s.lifeline)
	in, err := cmd.StdinPipe()
	must(s, err)
	out, err := cmd.StdoutPipe()
	must(s, err)
	must(s, cmd.Start())
	s.standby = &serverProcess{cmd: cmd, in: in, out: bufio.NewReader(out)}
}

// start has the server that waits serve.
func (s *served) start() {
	s.Helper()
	job, err := json.Marshal(s.job)
	must(s, err)
	s.serverProcess, s.standby = s.standby, nil
	line := s.ask(string(job))
	if _, err := fmt.Sscanf(line, "serving %d", &s.job.Holder); err != nil {
		cmd := s.cmd
		s.serverProcess = nil
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s.Fatalf("the server says %q", line)
	}
	s.prepare()
}

func (s *serverProcess) line() string {
	line, err := s.out.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

func (s *serverProcess) ask(what string) string {
	if _, err := fmt.Fprintln(s.in, what); err != nil {
		return err.Error()
	}
	return s.line()
}

// kill kills the server, and starts the next one.
func (s *served) kill() {
	s.Helper()
	must(s, s.cmd.Process.Kill())
	_ = s.cmd.Wait() // it was killed
	if owner := s.state.Owner(); owner != s.cmd.Process.Pid {
		s.Fatalf("the state is about process %d, the server was %d", owner, s.cmd.Process.Pid)
	}
	s.kills++
	s.start()
}

func (s *served) path(name string) string  { return filepath.Join(s.job.Mnt, name) }
func (s *served) under(name string) string { return filepath.Join(s.job.Back, name) }

func (s *served) open(name string, flags int) int {
	s.Helper()
	fd, err := unix.Open(s.path(name), flags|unix.O_CLOEXEC, 0o644)
	must(s, err)
	s.Cleanup(func() { closeBelow(fd, s.job.Mnt, "/memfd") })
	return fd
}

func (s *served) rules() []fusefs.RuleStatus {
	s.Helper()
	var out []fusefs.RuleStatus
	text := s.ask("rules")
	must(s, json.Unmarshal([]byte(strings.TrimSuffix(text, " <nil>")), &out))
	return out
}

func (s *served) read(fd int, n int) string {
	s.Helper()
	b := make([]byte, n)
	got, err := unix.Read(fd, b)
	must(s, err)
	return string(b[:got])
}

func (s *served) same(what string, got, want any) {
	s.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		s.Errorf("after %d kills, %s: %v instead of %v", s.kills, what, got, want)
	}
}

// soon waits until f succeeds.
func (s *served) soon(what string, f func() error) {
	s.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	s.Errorf("after %d kills, %s: %v", s.kills, what, err)
}

func someEntries(t testing.TB, fd int) []string {
	t.Helper()
	b := make([]byte, 512)
	n, err := unix.Getdents(fd, b)
	must(t, err)
	_, _, list := unix.ParseDirent(b[:n], -1, nil)
	return slices.Clip(list)
}
