package graft

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/plugin/holder"
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

// FuzzJob: any process can have any arguments. What they say is read as faultgraft writes it, and nothing else is a job.
func FuzzJob(f *testing.F) {
	for _, args := range [][]string{
		{"faultgraft", "keeper", "--state-dir", "/run/faultgraft"}, {"faultgraft", "server", "--state-dir", "/x", "--more"}, {"faultgraft", "swap", "--progress=3"},
		{"faultgraft", "swap", "me"}, {"faultgraft", "keeper", "--other", "/x"}, {"faultgraft", "keeper"}, {"faultgraft", "keeper", "--state-dir"}, {holder.Name}, {""}, {},
	} {
		f.Add(strings.Join(args, "\x00") + "\x00")
	}
	f.Fuzz(func(t *testing.T, cmdline string) {
		job, dir := jobOf(cmdline)
		args := strings.Split(cmdline, "\x00")
		switch job {
		case "":
			if dir != "" {
				t.Errorf("%q has no job, and the directory %q", cmdline, dir)
			}
		case "holder":
			if args[0] != holder.Name || dir != "" {
				t.Errorf("%q is a holder of %q", cmdline, dir)
			}
		case "keeper", "server":
			if args[1] != job || args[2] != "--state-dir" || args[3] != dir {
				t.Errorf("%q is a %s of %q", cmdline, job, dir)
			}
		case "swap":
			if args[1] != job || dir != "" {
				t.Errorf("%q is a %s of %q", cmdline, job, dir)
			}
		default:
			t.Errorf("%q has the job %q", cmdline, job)
		}
	})
}

// A process with arguments of any length costs who looks at it no more than one with few.
func TestJobOfLongArguments(t *testing.T) {
	args := []string{"-c", "read x", "faultgraft"}
	for range 16 {
		args = append(args, strings.Repeat("x", 100<<10))
	}
	cmd := exec.Command("sh", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = cmd.Wait() }()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if job, _ := Job(cmd.Process.Pid); job != "" {
		t.Errorf("a shell has the job %q", job)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes were allocated for it", n)
	}
}

// FuzzStatusField: a field of proc_pid_status(5) is on a line of its own.
func FuzzStatusField(f *testing.F) {
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(own), "PPid")
	f.Add("Name:\tPPid:\t7\nPPid:", "PPid")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, status, field string) {
		if v := fieldOf(status, field); v != "" && (strings.Contains(v, "\n") || !strings.Contains("\n"+status, "\n"+field+":")) {
			t.Errorf("%s is %q by %q", field, v, status)
		}
		if v := fieldOf(field+":\t 4711 \n"+status, field); !strings.Contains(field, "\n") && v != "4711" {
			t.Errorf("%q is %q", field, v)
		}
	})
}
