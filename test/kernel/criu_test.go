package kernel

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/vm"
)

// stoppable is a container that can be checkpointed, and grafted, as its target is test/holder: it has files of a volume at /data,
// and of its own root at /own, and answers what is asked.
type stoppable struct {
	*container
	volume, root string
	state        string // faultgraft's
	answers      int
}

// needCRIU skips but on the kernel that CRIU is tried on. CRIU is Debian 12's, and so is the kernel.
func needCRIU(t testing.TB) {
	t.Helper()
	if vm.Kernel() != "debian-6.1" {
		t.Skip("checkpoints are made on one kernel: make test-vm KERNEL=debian-6.1")
	}
}

// startStoppable starts one.
func startStoppable(t testing.TB, name string) *stoppable {
	t.Helper()
	s := &stoppable{volume: t.TempDir(), state: filepath.Join(t.TempDir(), "state")}
	write(t, filepath.Join(s.volume, "f"), "0123456789")
	t.Cleanup(func() { // after the container's end
		if out, err := s.faultgraft("recover", "--all", "--purge"); err != nil {
			t.Errorf("recover --all --purge: %v: %s", err, out)
		}
	})
	s.container = startAs(t, name, "mkdir /ctl /own && mkfifo /ctl/in && echo 0123456789 >/own/f && exec /src/bin/holder <>/ctl/in >>/ctl/out 2>&1", func(spec *specs.Spec) {
		spec.Mounts = append(spec.Mounts[:3:3], // no sysfs: that is one of a network namespace
			specs.Mount{Destination: "/src", Type: "bind", Source: "/src", Options: []string{"rbind", "ro"}},
			specs.Mount{Destination: "/data", Type: "bind", Source: s.volume, Options: []string{"rbind"}})
		// to dump a network namespace CRIU wants ip and iptables
		spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}}
	})
	s.root = filepath.Join(s.bundle, "rootfs")
	await(t, "the target listens", func() bool {
		_, err := os.Stat(s.root + "/ctl/out")
		return err == nil
	})
	for _, dir := range []string{"data", "own"} {
		s.ok("open %[1]s /%[1]s/f rdwr", dir)
		s.ok("lseek %s 4", dir)
		s.ok("mmap %[1]s %[1]s 10 private", dir)
		s.ok("poke %s 1 x", dir)
	}
	s.ok("chdir /data")
	return s
}

// ask has the target make a call, and returns what came of it.
func (s *stoppable) ask(format string, args ...any) string {
	s.t.Helper()
	in, err := os.OpenFile(s.root+"/ctl/in", os.O_RDWR, 0) // does not wait for who reads
	if err != nil {
		s.t.Fatal(err)
	}
	command := fmt.Sprintf(format, args...)
	if _, err := fmt.Fprintln(in, command); err != nil {
		s.t.Fatal(err)
	}
	var lines []string
	await(s.t, "an answer to "+command, func() bool {
		out, err := os.ReadFile(s.root + "/ctl/out")
		if err != nil {
			s.t.Fatal(err)
		}
		lines = strings.SplitAfter(string(out), "\n")
		return len(lines) > s.answers+1
	})
	if err := in.Close(); err != nil { // not before: what nobody has read goes with the last one who has it open
		s.t.Error(err)
	}
	s.answers = len(lines) - 1
	return strings.TrimSpace(lines[len(lines)-2])
}

func (s *stoppable) ok(format string, args ...any) {
	s.t.Helper()
	if a := s.ask(format, args...); !strings.HasPrefix(a, "ok") {
		s.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), a)
	}
}

func (s *stoppable) is(want, format string, args ...any) {
	s.t.Helper()
	if a := s.ask(format, args...); a != want {
		s.t.Errorf("%s: %q, want %q", fmt.Sprintf(format, args...), a, want)
	}
}

// whole: the target has what it had, and nobody traces it. fsync is what its fsync at /data and at /own says.
func (s *stoppable) whole(fsync ...string) {
	s.t.Helper()
	for i, dir := range []string{"data", "own"} {
		s.is("ok 4", "lseek %s cur", dir)
		s.is("ok 0x23456789", "peek %s 0 10", dir)
		s.is("ok 0123456789", "pread %s 0 10", dir)
		s.is(fsync[i], "fsync %s", dir)
	}
	s.is("ok /data", "getcwd")
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", s.pid()))
	if err != nil || len(tasks) == 0 {
		s.t.Fatalf("threads: %v", err)
	}
	for _, f := range tasks {
		if b, err := os.ReadFile(f); err == nil && !strings.Contains(string(b), "TracerPid:\t0\n") {
			s.t.Errorf("%s: it is traced", f)
		}
	}
}

func (s *stoppable) faultgraft(args ...string) (string, error) {
	return command(patience, append([]string{os.Getenv("FAULTGRAFT_BIN"), "--state-dir", s.state}, args...)...)
}

// graft has the target's fsync below path fail.
func (s *stoppable) graft(path string) {
	s.t.Helper()
	if out, err := s.faultgraft("inject", "--pid", itoa(s.pid()), "--path", path, fsyncFails); err != nil {
		s.t.Fatalf("inject: %v: %s", err, out)
	}
}

const fsyncFails = "io error=EIO op=fsync ttl=1h"

// layers are those of the target.
func (s *stoppable) layers() []keeper.Graft {
	s.t.Helper()
	out, err := exec.Command(os.Getenv("FAULTGRAFT_BIN"), "--state-dir", s.state, "ps", "-o", "json").Output()
	if err != nil {
		s.t.Fatalf("ps: %v: %s", err, out)
	}
	var all []keeper.Graft
	if err := json.Unmarshal(out, &all); err != nil {
		s.t.Fatalf("ps: %v: %s", err, out)
	}
	return all
}

// active: there is one layer, and it is in work.
func (s *stoppable) active() {
	s.t.Helper()
	if all := s.layers(); len(all) != 1 || all[0].State != keeper.StateActive {
		s.t.Errorf("layers: %+v", all)
	}
}

func (s *stoppable) recover() {
	s.t.Helper()
	if out, err := s.faultgraft("recover", "--all"); err != nil {
		s.t.Fatalf("recover: %v: %s", err, out)
	}
	if all := s.layers(); len(all) > 0 {
		s.t.Errorf("left: %+v", all)
	}
}

// checkpoint returns where the images are, and in an error what CRIU says.
func (s *stoppable) checkpoint(options ...string) (string, error) {
	s.t.Helper()
	dir := s.t.TempDir()
	answers, err := os.ReadFile(s.root + "/ctl/out")
	if err != nil {
		s.t.Fatal(err)
	}
	write(s.t, dir+"/answers", string(answers)) // for restore
	out, err := command(patience, append(append([]string{"runc", "checkpoint", "--image-path", dir, "--work-path", dir}, options...), s.name)...)
	if err == nil {
		return dir, nil
	}
	log, _ := os.ReadFile(dir + "/dump.log") // it may not have come so far
	says := regexp.MustCompile(`(?m)Error.*$`).FindAllString(string(log), -1)
	if len(says) == 0 {
		s.t.Fatalf("runc checkpoint: %v: %s", err, out)
	}
	return dir, fmt.Errorf("%w: %s", err, strings.Join(says, "; "))
}

// dump makes a checkpoint, after which the container goes on or has ended.
func (s *stoppable) dump(options ...string) string {
	s.t.Helper()
	dir, err := s.checkpoint(options...)
	if err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// restore starts the container from images, after its end.
func (s *stoppable) restore(images string) {
	s.t.Helper()
	s.remove()
	// CRIU wants files to be as long as they were
	answers, err := os.ReadFile(images + "/answers")
	if err == nil {
		err = os.WriteFile(s.root+"/ctl/out", answers, 0o644)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.answers = strings.Count(string(answers), "\n")
	out, err := os.Create(filepath.Join(s.bundle, "output"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command("runc", "restore", "-d", "--file-locks", "--image-path", images, "--work-path", images, "-b", s.bundle, s.name)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		log, _ := os.ReadFile(images + "/restore.log")
		s.t.Fatalf("runc restore: %v: %s\n%s", err, s.output(), log[max(0, len(log)-2000):])
	}
}

// vdso is that of a process.
func vdso(t testing.TB, pid int) []byte {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]$`).FindSubmatch(maps)
	if m == nil {
		t.Fatalf("no vdso in\n%s", maps)
	}
	var from, to int64
	if _, err := fmt.Sscanf(string(m[1])+" "+string(m[2]), "%x %x", &from, &to); err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	b := make([]byte, to-from)
	if _, err := mem.ReadAt(b, from); err != nil {
		t.Fatal(err)
	}
	return b
}

// stopSwapper grafts with a swapper that stops in the middle of it. It returns the swapper, and what the graft comes to: nil, or an error with its words.
func (s *stoppable) stopSwapper(path string) (swapper int, end <-chan error) {
	s.t.Helper()
	graft := exec.Command(os.Getenv("FAULTGRAFT_BIN"), "--state-dir", s.state, "inject", "--pid", itoa(s.pid()), "--path", path, "--deadline", "5m", fsyncFails)
	graft.Env = append(os.Environ(), failpoint.At+"=stop:swapper graft.commit", failpoint.Reached+"="+s.t.TempDir())
	var said bytes.Buffer
	graft.Stdout, graft.Stderr = &said, &said
	if err := graft.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		err := graft.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, &said)
		}
		ended <- err
	}()
	s.t.Cleanup(func() { _ = graft.Process.Kill() }) // it may have ended
	await(s.t, "the swapper stops", func() bool {
		select {
		case err := <-ended:
			s.t.Fatalf("the graft has ended: %v", err)
		default:
		}
		swapper = stopped(s.t)
		return swapper != 0
	})
	s.t.Cleanup(func() { _ = unix.Kill(swapper, unix.SIGCONT) }) // the same
	return swapper, ended
}

// stopped is a swapper that has stopped itself.
func stopped(t testing.TB) int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		dir := filepath.Dir(f)
		stat, _ := os.ReadFile(f) // any process may have ended
		exe, _ := os.Readlink(dir + "/exe")
		if strings.Contains(string(stat), ") T ") && exe == os.Getenv("FAULTGRAFT_BIN") {
			var pid int
			if _, err := fmt.Sscanf(filepath.Base(dir), "%d", &pid); err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}

// maps are the target's, without what a program of Go makes while it runs: its heap has no name.
func (s *stoppable) maps() string {
	s.t.Helper()
	all, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", s.pid()))
	if err != nil {
		s.t.Fatal(err)
	}
	var named strings.Builder
	for l := range strings.Lines(string(all)) {
		if len(strings.Fields(l)) > 5 || strings.Contains(strings.Fields(l)[1], "x") {
			named.WriteString(l)
		}
	}
	return named.String()
}

func (s *stoppable) mounts() string {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", s.pid()))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}
