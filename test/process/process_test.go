// Package process tests grafts on real processes through the faultgraft
// command: no containerd, real mounts, real descriptors.
package process

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/programs"
	"golang.org/x/sys/unix"
)

var binaries struct {
	faultgraft, holder string
}

func TestMain(m *testing.M) {
	// Tests that run beside each other mostly wait for deadlines of faultgraft's, and need no processor.
	if flag.Parse(); !slices.ContainsFunc(os.Args, func(a string) bool { return strings.Contains(a, "test.parallel=") }) {
		if err := flag.Set("test.parallel", "6"); err != nil {
			panic(err) // the testing package has it
		}
	}
	os.Exit(programs.Main(m, func() (err error) {
		if err := leaveOthersMounts(); err != nil {
			return err
		}
		if binaries.faultgraft, err = programs.Go("cmd/faultgraft"); err != nil {
			return err
		}
		binaries.holder, err = programs.Go("test/holder")
		return err
	}))
}

// leaveOthersMounts takes off what other tests have mounted: it would go in the middle of ours, with the directories it lies on.
func leaveOthersMounts() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, l := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(l); len(f) > 4 && strings.HasPrefix(f[4], os.TempDir()+"/") {
			_ = unix.Unmount(f[4], unix.MNT_DETACH) // it may have gone with one above it
		}
	}
	return nil
}

// rig is a state directory and a data directory of one test.
type rig struct {
	t     testing.TB
	state string
	data  string
	env   []string // for faultgraft
	// binary is the faultgraft to run; empty: binaries.faultgraft.
	binary string
	// prefix is the command that faultgraft is started by, if any.
	prefix []string
	// swapper is the one that stopAt waited for.
	swapper int
	// reached is where processes say at which failpoint they came by.
	reached string
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, state: filepath.Join(t.TempDir(), "state"), data: filepath.Join(t.TempDir(), "data"), reached: t.TempDir()}
	if err := os.MkdirAll(r.data, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := r.run("recover", "--all", "--purge"); err != nil {
			t.Errorf("recover --all --purge: %v: %s", err, out)
		}
		r.nothingIsLeft()
	})
	return r
}

// nothingIsLeft fails a test that has left something of its own.
func (r *rig) nothingIsLeft() {
	r.t.Helper()
	if _, err := os.Stat(r.state); err == nil {
		left, _ := filepath.Glob(r.state + "/*")
		r.t.Errorf("state is left: %v", left)
	}
	var left []string
	for end := time.Now().Add(walkDeadline); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left = r.leftovers(); len(left) == 0 {
			return
		}
	}
	r.t.Errorf("left behind: %q", left)
}

// own is the folder that all of the test's files are in.
func (r *rig) own() string { return filepath.Dir(filepath.Dir(r.data)) + "/" }

// leftovers are faultgraft's processes that work with the rig's state directory, and layers over the test's files in this mount
// namespace. There may be other tests beside this one.
func (r *rig) leftovers() []string {
	r.t.Helper()
	var found []string
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range exes {
		// A target may be within an execve, so that whoever looks at its exe waits (TestExecveThatHangs).
		if comm, _ := os.ReadFile(filepath.Join(filepath.Dir(e), "comm")); string(comm) == "holder\n" {
			continue
		}
		if l, err := os.Readlink(e); err != nil || !strings.HasPrefix(l, binaries.faultgraft) {
			continue
		}
		env, _ := os.ReadFile(filepath.Join(filepath.Dir(e), "environ")) // it may have ended
		if strings.Contains(string(env), "FAULTGRAFT_STATE="+r.state+"\x00") {
			b, _ := os.ReadFile(filepath.Join(filepath.Dir(e), "cmdline"))
			found = append(found, e+" "+string(bytes.ReplaceAll(b, []byte{0}, []byte(" "))))
		}
	}
	m, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range strings.Split(string(m), "\n") {
		if strings.Contains(l, "fuse.faultgraft") && strings.Contains(l, r.own()) {
			found = append(found, l)
		}
	}
	return found
}

// command is a faultgraft command on the rig's state.
func (r *rig) command(args ...string) *exec.Cmd {
	args = append(append(slices.Clone(r.prefix), cmp.Or(r.binary, binaries.faultgraft)), args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(append(os.Environ(), "FAULTGRAFT_STATE="+r.state, failpoint.Reached+"="+r.reached), r.env...)
	return cmd
}

// failing is what has a step of a job fail, once: "commit", or "kill:commit" for the process to be killed.
func failing(job, step string) string {
	how, name, ok := strings.Cut(step, ":")
	if !ok {
		how, name = "fail", step
	}
	return failpoint.At + "=" + how + ":" + job + "." + name
}

func (r *rig) run(args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := r.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), err
}

// inject grafts and fails the test if it cannot; it returns the whole answer.
func (r *rig) inject(h *holder, path string, args ...string) keeper.Graft {
	r.t.Helper()
	out, err := r.run(slices.Concat([]string{"inject", "--pid", fmt.Sprint(h.pid()), "--path", path, "-o", "json"}, stopDeadline(), args)...)
	if err != nil {
		r.t.Fatalf("inject: %v%s", err, r.logs())
	}
	var g []keeper.Graft
	if err := json.Unmarshal([]byte(out), &g); err != nil || len(g) != 1 {
		r.t.Fatalf("inject answered %q: %v", out, err)
	}
	return g[0]
}

// stopDeadline is nothing, the default, but on a machine that is emulated: its seconds are short. A test's own arguments come after it, and win.
func stopDeadline() []string {
	if d := os.Getenv("FAULTGRAFT_TEST_DEADLINE"); d != "" {
		return []string{"--deadline", d}
	}
	return nil
}

func (r *rig) recover(g keeper.Graft) keeper.Graft {
	r.t.Helper()
	out, err := r.run("recover", g.ID, "-o", "json")
	if err != nil {
		events, _ := r.run("events")
		r.t.Fatalf("recover: %v%s\n%s", err, r.logs(), events)
	}
	var gs []keeper.Graft
	if err := json.Unmarshal([]byte(out), &gs); err != nil || len(gs) != 1 {
		r.t.Fatalf("recover answered %q: %v", out, err)
	}
	return gs[0]
}

func (r *rig) list() []keeper.Graft {
	r.t.Helper()
	out, err := r.run("ps", "-o", "json")
	if err != nil {
		r.t.Fatalf("ps: %v", err)
	}
	var g []keeper.Graft
	if err := json.Unmarshal([]byte(out), &g); err != nil {
		r.t.Fatalf("ps answered %q: %v", out, err)
	}
	return g
}

func (r *rig) events() []keeper.Event {
	r.t.Helper()
	out, err := r.run("events", "-o", "json")
	if err != nil {
		r.t.Fatalf("events: %v", err)
	}
	var all []keeper.Event
	for _, l := range strings.Split(out, "\n") {
		var e keeper.Event
		if l == "" {
			continue
		}
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			r.t.Fatalf("event %q: %v", l, err)
		}
		all = append(all, e)
	}
	return all
}

// awaitOff waits until nothing is grafted any more. complaint is for a failed test.
func (r *rig) awaitOff(patience time.Duration, complaint string) {
	r.t.Helper()
	for end := time.Now().Add(patience); len(r.list()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s: %+v%s", complaint, r.list(), r.logs())
		}
	}
}

// awaitUnmounted waits until the target has no layer any more.
func (r *rig) awaitUnmounted(h *holder, patience time.Duration) {
	r.t.Helper()
	for end := time.Now().Add(patience); strings.Contains(h.mountinfo(), "fuse.faultgraft"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("still mounted%s", r.logs())
		}
	}
}

// logs is what the keepers have to say, for a failed test.
func (r *rig) logs() string {
	var s strings.Builder
	files, _ := filepath.Glob(filepath.Join(r.state, "keepers", "*", "keeper.log"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		fmt.Fprintf(&s, "\n%s:\n%s", f, b)
	}
	return s.String()
}

// write makes a file in the data directory.
func (r *rig) write(name, content string) string {
	r.t.Helper()
	p := filepath.Join(r.data, name)
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// holder is a running target; see test/holder.
type holder struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	own string // see rig.own
	mu  sync.Mutex
}

// start runs a holder in a mount namespace of its own, as a container's process is.
func (r *rig) start() *holder {
	return r.startWith("unshare", "--mount", "--propagation", "private", binaries.holder)
}

func (r *rig) startWith(args ...string) *holder {
	r.t.Helper()
	h := r.launch(args...)
	h.ok("stat /") // it runs, and in its namespace
	return h
}

// launch runs a program that answers each line of its input with one line.
func (r *rig) launch(args ...string) *holder { r.t.Helper(); return r.launchAs(nil, args...) }

func (r *rig) launchAs(attr *syscall.SysProcAttr, args ...string) *holder {
	r.t.Helper()
	h := &holder{t: r.t, own: r.own(), cmd: exec.Command(args[0], args[1:]...)}
	h.cmd.SysProcAttr = attr
	h.cmd.Stderr = os.Stderr
	// Go's scheduler sends its threads signals, by which calls that wait for a rule would end with EINTR.
	h.cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(h.stop)
	return h
}

func (h *holder) pid() int { return h.cmd.Process.Pid }

// whereThreadsAre says for each thread of a process in which state it is, and where in the kernel.
func whereThreadsAre(pid int) string {
	var all strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		status, _ := os.ReadFile(filepath.Join(task, "status"))
		stack, _ := os.ReadFile(filepath.Join(task, "stack"))
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, "State:") || strings.HasPrefix(line, "TracerPid:") || strings.HasPrefix(line, "SigQ:") {
				all.WriteString(line)
			}
		}
		fmt.Fprintf(&all, "%s\n", stack)
	}
	return all.String()
}

func (h *holder) stop() {
	_ = h.in.Close()
	done := make(chan struct{})
	go func() { _ = h.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		h.t.Errorf("the target does not end: %s", whereThreadsAre(h.pid()))
		_ = h.cmd.Process.Kill()
		<-done
	}
}

// do gives one command and returns the answer.
func (h *holder) do(format string, args ...any) string {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	command := fmt.Sprintf(format, args...)
	if _, err := fmt.Fprintln(h.in, command); err != nil {
		h.t.Fatalf("%s: the target is gone: %v", command, err)
	}
	return h.line(command)
}

// line reads one line.
func (h *holder) line(command string) string {
	h.t.Helper()
	type line struct {
		s   string
		err error
	}
	got := make(chan line, 1)
	go func() { s, err := h.out.ReadString('\n'); got <- line{s, err} }()
	select {
	case l := <-got:
		if l.err != nil {
			h.t.Fatalf("%s: the target is gone: %v", command, l.err)
		}
		return strings.TrimSpace(l.s)
	case <-time.After(30 * time.Second):
		_ = h.cmd.Process.Kill()
		h.t.Fatalf("%s: the target hangs", command)
		return ""
	}
}

// ok gives a command that must succeed, and returns its value.
func (h *holder) ok(format string, args ...any) string {
	h.t.Helper()
	a := h.do(format, args...)
	v, found := strings.CutPrefix(a, "ok")
	if !found {
		h.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), a)
	}
	return strings.TrimSpace(v)
}

// is gives a command and compares the whole answer.
func (h *holder) is(want, format string, args ...any) {
	h.t.Helper()
	if got := h.do(format, args...); got != want {
		h.t.Errorf("%s: %q, want %q", fmt.Sprintf(format, args...), got, want)
	}
}

// mountinfo is what the target sees, without what the tests beside this one have mounted.
func (h *holder) mountinfo() string {
	h.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", h.pid()))
	if err != nil {
		h.t.Fatal(err)
	}
	var own strings.Builder
	for l := range strings.Lines(string(b)) {
		if strings.Contains(l, h.own) || !strings.Contains(l, os.TempDir()+"/Test") {
			own.WriteString(l)
		}
	}
	return own.String()
}

// snapshot is all that a swap could change: every fdinfo and link, the cwd, the maps, the mounts.
func (h *holder) snapshot() map[string]string {
	h.t.Helper()
	s := map[string]string{"mountinfo": h.mountinfo()}
	base := fmt.Sprintf("/proc/%d/", h.pid())
	fds, err := os.ReadDir(base + "fd")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range fds {
		link, err := os.Readlink(base + "fd/" + e.Name())
		if err != nil || !strings.HasPrefix(link, "/") {
			continue
		}
		info, err := os.ReadFile(base + "fdinfo/" + e.Name())
		if err != nil {
			h.t.Fatal(err)
		}
		s["fd "+e.Name()] = link + "\n" + string(info)
	}
	if s["cwd"], err = os.Readlink(base + "cwd"); err != nil {
		h.t.Fatal(err)
	}
	b, err := os.ReadFile(base + "maps")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if strings.Contains(l, "/data/") {
			s["map "+strings.Fields(l)[0]] = l
		}
	}
	return s
}

// same compares two snapshots, without what a running program changes by itself.
func same(t testing.TB, before, after map[string]string) {
	t.Helper()
	lockID := regexp.MustCompile(`(?m)^lock:\t\d+:`)
	for k, v := range before {
		if a, b := lockID.ReplaceAllString(v, "lock:"), lockID.ReplaceAllString(after[k], "lock:"); a != b {
			t.Errorf("%s: before\n%s\nafter\n%s", k, a, b)
		}
	}
	for k, v := range after {
		if _, ok := before[k]; !ok {
			t.Errorf("%s is new: %s", k, v)
		}
	}
}
