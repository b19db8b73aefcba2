package fusefs_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/policy"
)

// victimEnv marks a process that serves a layer until it is killed.
const victimEnv = "FUSEFS_TEST_VICTIM"

// Descriptors of a server: the device and the root, unless it restores a layer, and the state's files.
const (
	victimDevice = 3 + iota
	victimRoot
	victimState
)

// victimCommand is what a server is told to do. It answers each with a victimReport.
type victimCommand struct {
	Do    string         // new, restore, resume, arm, rules, known, forget
	Take  map[string]int // for restore: the numbers that descriptors of the server before have in the process that started this one
	Place string         // for arm: stop when a request with this operation code comes to this place
	Ops   []uint32
	Again bool // only one that was sent before
	Fresh bool // only one that was not
	// Direct and NoResend are those of Options, for new and restore.
	Direct, NoResend bool
	Rules            []string
	Start            time.Time
}

type victimReport struct {
	Do             string // what it answers
	Err            string
	Armed          bool // it has not stopped yet where it is to
	Nodes, Handles int
	Resent         uint64
	Slots          int
	Rules          []fusefs.RuleStatus
	Events         []fusefs.Event
}

// serveUntilKilled is the main function of a server.
func serveUntilKilled() int {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	s := &victim{parent: os.Getppid()}
	for {
		var c victimCommand
		if err := in.Decode(&c); err != nil {
			return 0 // the test is over
		}
		r := victimReport{Do: c.Do}
		if err := s.do(c, &r); err != nil {
			r.Err = err.Error()
		}
		if err := out.Encode(r); err != nil {
			return 1
		}
	}
}

type victim struct {
	parent int
	layer  *fusefs.Layer
	mu     sync.Mutex
	armed  victimCommand
	events []fusefs.Event
}

func (s *victim) do(c victimCommand, r *victimReport) (err error) {
	switch c.Do {
	case "new":
		return s.begin(c, func(o fusefs.Options) (*fusefs.Layer, error) {
			o.Device, o.Root = victimDevice, victimRoot
			l, err := fusefs.New(o)
			if err == nil {
				err = l.Serve()
			}
			return l, err
		})
	case "restore":
		from, err := unix.PidfdOpen(s.parent, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(from) }()
		return s.begin(c, func(o fusefs.Options) (*fusefs.Layer, error) {
			return fusefs.Restore(o, func(fd int) (int, error) {
				there, ok := c.Take[strconv.Itoa(fd)]
				if !ok {
					return -1, fmt.Errorf("the server that died had no descriptor %d", fd)
				}
				return unix.PidfdGetfd(from, there, 0)
			})
		})
	case "resume":
		return s.layer.Resume()
	case "arm":
		s.mu.Lock()
		s.armed = c
		s.mu.Unlock()
	case "rules":
		var rules []policy.Rule
		for i, text := range c.Rules {
			rule, err := policy.ParseRule(fmt.Sprintf("r%d", i), text, policy.Defaults{Path: "/data/**"})
			if err != nil {
				return err
			}
			rules = append(rules, rule)
		}
		return s.layer.SetRules(rules, c.Start)
	case "forget":
		fusefs.DropNames(s.layer)
	}
	s.mu.Lock()
	r.Armed = s.armed.Place != ""
	s.mu.Unlock()
	if s.layer != nil {
		r.Nodes, r.Handles = s.layer.Known()
		r.Resent, r.Slots, r.Rules = s.layer.Resent(), s.layer.Slots(), s.layer.Rules()
		s.mu.Lock()
		r.Events = s.events
		s.mu.Unlock()
	}
	return nil
}

func (s *victim) begin(c victimCommand, make func(fusefs.Options) (*fusefs.Layer, error)) error {
	fusefs.OnPlace(s.reached)
	state, err := fusefs.OpenState(stateFiles())
	if err != nil {
		return err
	}
	s.layer, err = make(fusefs.Options{Prefix: "/data", State: state, Direct: c.Direct, NoResend: c.NoResend, Record: func(e fusefs.Event) {
		s.mu.Lock()
		s.events = append(s.events, e)
		s.mu.Unlock()
	}})
	return err
}

// stateFiles are the descriptors from victimState on.
func stateFiles() (files []int) {
	n, _ := strconv.Atoi(os.Getenv(victimEnv))
	for i := range n {
		files = append(files, victimState+i)
	}
	return files
}

// reached stops the process where it is to be killed.
func (s *victim) reached(place string, op uint32, again bool) {
	s.mu.Lock()
	a := s.armed
	hit := a.Place == place && slices.Contains(a.Ops, op) && (again || !a.Again) && (!again || !a.Fresh)
	if hit {
		s.armed = victimCommand{}
	}
	s.mu.Unlock()
	if hit {
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
		select {} // until the signal is there
	}
}

// resentBothWays runs a test with a kernel that sends requests again, if this is one, and as if it were none.
func resentBothWays(t *testing.T, run func(t *testing.T, noResend bool)) {
	t.Run("sent_again", func(t *testing.T) {
		if !sendsAgain(t) {
			t.Skip("this kernel cannot send requests again (Linux 6.9)")
		}
		run(t, false)
	})
	t.Run("found", func(t *testing.T) { run(t, true) })
}

// sendsAgain tells whether the kernel has FUSE_NOTIFY_RESEND.
func sendsAgain(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	must(t, unix.Uname(&u))
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	must(t, err)
	return major > 6 || major == 6 && minor >= 9
}

// fragile is a layer that is served by processes that are killed. The test holds what they have open, as a holder does, in
// the moments from one's death to the next one's birth.
type fragile struct {
	testing.TB
	back, mnt string
	state     *fusefs.State
	device    int // kept, so that the connection outlives all servers
	mount     int
	server    *exec.Cmd
	in        *json.Encoder
	out       *json.Decoder
	pipes     []io.Closer
	rules     victimCommand
	direct    bool
	noResend  bool
	kills     int
	callers   []*exec.Cmd
}

func serveFragile(t testing.TB, direct, noResend bool) *fragile {
	t.Helper()
	if why := unusable(); why != "" {
		t.Skip(why)
	}
	f := &fragile{TB: t, back: t.TempDir(), direct: direct, noResend: noResend}
	must(t, os.Chmod(filepath.Dir(f.back), 0o755))
	must(t, os.Chmod(f.back, 0o755))
	f.mnt = filepath.Join(t.TempDir(), "mnt")
	must(t, os.Mkdir(f.mnt, 0o755))
	var err error
	f.state, err = fusefs.NewState()
	must(t, err)
	f.device, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	f.mount = detachedMount(t, f.device, unix.S_IFDIR, setup{})
	t.Cleanup(f.end)
	root, err := unix.Open(f.back, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	f.start(root)
	must(t, unix.Close(root))
	f.tell(victimCommand{Do: "new", Direct: direct, NoResend: noResend})
	must(t, unix.MoveMount(f.mount, "", unix.AT_FDCWD, f.mnt, unix.MOVE_MOUNT_F_EMPTY_PATH))
	if report := os.NewFile(3, "report"); report != nil {
		var st unix.Statx_t
		must(t, unix.Statx(f.mount, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)) // this process holds the device: it must not ask the server
		_, _ = fmt.Fprintln(report, st.Dev_minor)                                            // lets a hang be ended
		reports = append(reports, report)
	}
	return f
}

// end takes the layer off. What waits for it is let go of.
func (f *fragile) end() {
	_ = unix.Unmount(f.mnt, unix.MNT_DETACH)
	_ = unix.Close(f.mount)
	f.kill()
	for _, c := range f.callers {
		_ = c.Process.Kill()
	}
	_ = unix.Close(f.device) // the last one: the connection ends, and with it all calls
	for _, c := range f.callers {
		_ = c.Wait() // it was killed
	}
	must(f, f.state.Close())
}

// start starts a server. root is the object under the layer, -1 for a server that restores it.
func (f *fragile) start(root int) {
	f.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", victimEnv, len(f.state.Files())))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	device := f.device
	if root < 0 {
		root, device = f.state.Files()[0], f.state.Files()[0] // anything: it takes its own
	}
	var files []*os.File
	for _, fd := range append([]int{device, root}, f.state.Files()...) {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		must(f, err)
		files = append(files, os.NewFile(uintptr(d), "passed"))
	}
	cmd.ExtraFiles = files
	stdin, err := cmd.StdinPipe()
	must(f, err)
	stdout, err := cmd.StdoutPipe()
	must(f, err)
	must(f, cmd.Start())
	for _, file := range files {
		must(f, file.Close())
	}
	f.server, f.in, f.out, f.pipes = cmd, json.NewEncoder(stdin), json.NewDecoder(bufio.NewReader(stdout)), []io.Closer{stdin, stdout}
}

// tell has the server do something.
func (f *fragile) tell(c victimCommand) victimReport {
	f.Helper()
	must(f, f.in.Encode(c))
	done := make(chan error, 1)
	var r victimReport
	go func() {
		var err error
		for r.Do != c.Do && err == nil { // what else it answers, nobody has waited for
			r = victimReport{}
			err = f.out.Decode(&r)
		}
		done <- err
	}()
	select {
	case err := <-done:
		must(f, err)
	case <-time.After(patience):
		f.Fatalf("the server does not answer %q\n%s", c.Do, taskStates(f.server.Process.Pid))
	}
	if r.Err != "" {
		f.Fatalf("the server: %s: %s", c.Do, r.Err)
	}
	return r
}

// setRules sets rules that all servers to come are given, too.
func (f *fragile) setRules(texts ...string) {
	f.Helper()
	f.rules = victimCommand{Do: "rules", Rules: texts, Start: time.Now()}
	f.tell(f.rules)
}

// arm has the server stop where a request of this kind comes to this place.
func (f *fragile) arm(place, ops string) {
	f.Helper()
	f.tell(armed(place, ops, false))
}

// armed is the command for arm; ops are separated by spaces.
func armed(place, ops string, again bool) victimCommand {
	c := victimCommand{Do: "arm", Place: place, Again: again}
	for _, op := range strings.Fields(ops) {
		c.Ops = append(c.Ops, fusefs.Opcodes[op])
	}
	return c
}

func (f *fragile) kill() {
	if f.server == nil {
		return
	}
	_ = f.server.Process.Kill()
	_ = f.server.Wait() // it was killed
	for _, p := range f.pipes {
		_ = p.Close()
	}
	f.server = nil
}

// stopped waits until all threads of the server are stopped.
func (f *fragile) stopped() {
	f.Helper()
	pid := f.server.Process.Pid
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		states := taskStates(pid)
		if states != "" && strings.Trim(states, "T") == "" {
			return
		}
		if time.Now().After(end) {
			f.Fatalf("the server does not stop: its threads are %q", states)
		}
	}
}

// taskStates has the state of each thread of a process, a letter for each (proc(5)).
func taskStates(pid int) string {
	var out strings.Builder
	list, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range list {
		b, err := os.ReadFile(file)
		if i := strings.LastIndexByte(string(b), ')'); err == nil && i >= 0 && len(b) > i+2 {
			out.WriteByte(b[i+2])
		}
	}
	return out.String()
}

// replace kills the server, which is stopped or is going to be, and has another one serve the layer on. The new one is armed
// before it gets its first request, if arm is not nil.
func (f *fragile) replace(arm *victimCommand) {
	f.Helper()
	f.restore(arm)
	if arm != nil { // it may stop before it answers
		must(f, f.in.Encode(victimCommand{Do: "resume"}))
		return
	}
	f.tell(victimCommand{Do: "resume"})
}

// restore is replace up to where the new server asks for what was not answered.
func (f *fragile) restore(arm *victimCommand) {
	f.Helper()
	f.stopped()
	take := f.hold()
	f.kill()
	f.kills++
	f.start(-1)
	byName := map[string]int{}
	for there, here := range take {
		byName[strconv.Itoa(there)] = here
	}
	f.tell(victimCommand{Do: "restore", Take: byName, Direct: f.direct, NoResend: f.noResend})
	for _, here := range take {
		must(f, unix.Close(here))
	}
	if f.rules.Do != "" {
		f.tell(f.rules)
	}
	if arm != nil {
		f.tell(*arm)
	}
}

// killNow is kill -9 at a moment that nobody has chosen.
func (f *fragile) killNow() {
	f.Helper()
	must(f, f.server.Process.Signal(unix.SIGSTOP))
	f.replace(nil)
}

// killAt is kill -9 where the server stops because it was armed, or anywhere if it does not within some time.
func (f *fragile) killAt(within time.Duration) {
	f.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if states := taskStates(f.server.Process.Pid); states != "" && strings.Trim(states, "T") == "" {
			f.replace(nil)
			return
		}
	}
	f.killNow()
}

// hold takes a duplicate of each descriptor of the server.
func (f *fragile) hold() map[int]int {
	f.Helper()
	pid := f.server.Process.Pid
	from, err := unix.PidfdOpen(pid, 0)
	must(f, err)
	defer func() { _ = unix.Close(from) }()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(f, err)
	held := map[int]int{}
	for _, e := range list {
		there, err := strconv.Atoi(e.Name())
		must(f, err)
		here, err := unix.PidfdGetfd(from, there, 0)
		if errors.Is(err, unix.EBADF) {
			continue
		}
		must(f, err)
		held[there] = here
	}
	return held
}

// settled waits until the kernel has forgotten all that it was told of the layer's objects, and has all files closed.
func (f *fragile) settled() victimReport {
	f.Helper()
	return f.settledBut(0)
}

// settledBut is settled where so many objects may be left: a server that is killed with a FORGET that it has read, which is
// not answered and does not come again, leaves the objects that it was about.
func (f *fragile) settledBut(objects int) victimReport {
	f.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		r := f.tell(victimCommand{Do: "forget"})
		if r.Nodes <= objects && r.Handles == 0 {
			return r
		}
		if time.Now().After(end) {
			f.Errorf("%d objects and %d open files are left that nobody knows", r.Nodes, r.Handles)
			return r
		}
	}
}
