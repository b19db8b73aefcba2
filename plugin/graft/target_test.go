package graft

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	line := "4711 (a ) (b) S 1 4711 4711 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 9 0 123456 0 0"
	s, err := parseStat([]byte(line))
	if err != nil || s.Comm != "a ) (b" || s.State != 'S' || s.PPID != 1 || s.StartTime != 123456 || s.Threads != 9 || s.Flags&pfKthread != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "4711", "4711 (x", "4711 (x) S 1", ")(", "1 (x) S a 1 1 0 -1 1 1 0 0 0 1 2 0 0 20 0 9 0 1 0 0"} {
		if s, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q gave %+v", bad, s)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("1 (\x00)) R 0 0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil && !strings.Contains(string(b), "("+s.Comm+")") {
			t.Errorf("%q: name %q is not in it", b, s.Comm)
		}
	})
}

func TestRelativeTo(t *testing.T) {
	for _, c := range []struct {
		prefix, path, want string
		below              bool
	}{
		{"/data", "/data", "", true}, {"/data", "/data/a/b", "a/b", true}, {"/data", "/database", "/database", false},
		{"/", "/x", "x", true}, {"/data", "/", "/", false},
	} {
		if got, below := relativeTo(c.prefix, c.path); got != c.want || below != c.below {
			t.Errorf("%s below %s: %q, %v", c.path, c.prefix, got, below)
		}
	}
}

func TestCheckTarget(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it looks into other processes")
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	got, err := CheckTarget(cmd.Process.Pid)
	if err != nil || !got.Tree || !got.Alive() || got.StartTime == 0 {
		t.Errorf("a child in the own namespace: %+v, %v", got, err)
	}
	pids, err := got.Processes()
	if err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("its tree: %v, %v", pids, err)
	}
	reused := got
	reused.StartTime++
	if reused.Alive() {
		t.Error("a process with another start time passes for the target")
	}
	for pid, want := range map[int]string{0: "not a process id", -1: "not a process id", 1: "init", 2: "kernel thread", os.Getpid(): "refused", os.Getppid(): "process tree"} {
		if _, err := CheckTarget(pid); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pid %d: %v, want %q", pid, err, want)
		}
	}
}

func TestResolveStaysInTheTarget(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it opens another process's root")
	}
	dir := t.TempDir()
	for name, to := range map[string]string{"/magic": "/proc/self/root/etc", "/loop": "loop"} {
		if err := os.Symlink(to, dir+name); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	target, err := CheckTarget(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir + "/magic", dir + "/loop", "relative", "/", "/proc", "/sys", "/dev/null", dir + "/none"} {
		if l, err := resolve(target, p); err == nil {
			l.close()
			t.Errorf("%s can be grafted", p)
		}
	}
	l, err := resolve(target, dir+"/../"+dir[strings.LastIndexByte(dir, '/')+1:]+"/.")
	if err != nil || l.path != dir {
		t.Fatalf("%+v, %v", l, err)
	}
	l.close()
}
