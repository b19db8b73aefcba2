package tracer_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// frozenEnv has this program say what tracer.Frozen says of a process: PID main, where its main thread is in a namespace that
// has no cgroups, or PID all, where all of it is.
const frozenEnv = "TRACER_TEST_FROZEN"

func init() {
	if os.Getenv(frozenEnv) != "" {
		runtime.LockOSThread() // in an init: the main thread
	}
}

// lookFrozen is the program.
func lookFrozen() {
	number, which, _ := strings.Cut(os.Getenv(frozenEnv), " ")
	pid, err := strconv.Atoi(number)
	if err == nil {
		err = unix.Unshare(unix.CLONE_NEWNS) // of this thread: others have the namespace that they had
	}
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	if which == "all" {
		fmt.Println(tracer.Frozen(pid, "cat"))
		return
	}
	said := make(chan error)
	go func() { said <- tracer.Frozen(pid, "cat") }()
	fmt.Println(<-said)
}

// A frozen process is seen as such by whatever thread looks, also where the main thread has gone to a namespace without cgroups, and
// where no cgroup is mounted at all.
func TestFrozenIsSeen(t *testing.T) {
	needRoot(t)
	group, err := os.MkdirTemp("/sys/fs/cgroup/freezer", "faultgraft-test-")
	if err != nil {
		t.Skipf("no freezer of version 1: %v", err)
	}
	set := func(file, value string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(group, file), []byte(value), 0); err != nil {
			t.Error(err)
		}
	}
	cat := exec.Command("cat") // what sleeps in read(2) is woken for the freezer, what sleeps in nanosleep(2) is frozen where it is (TASK_FREEZABLE, Linux 6.1)
	if _, err := cat.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		set("freezer.state", "THAWED")
		_ = cat.Process.Kill()
		_ = cat.Wait()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if err := os.Remove(group); err == nil || time.Now().After(end) {
				if err != nil {
					t.Error(err)
				}
				return
			}
		}
	})
	set("cgroup.procs", strconv.Itoa(cat.Process.Pid))
	ask := func(which string) string {
		t.Helper()
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", frozenEnv, cat.Process.Pid, which))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	for _, which := range []string{"main", "all"} {
		if said := ask(which); said != "<nil>\n" {
			t.Errorf("%s, not frozen: %s", which, said)
		}
	}
	set("freezer.state", "FROZEN")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(group, "freezer.state"))
		if err != nil || time.Now().After(end) {
			t.Fatalf("freezer.state: %q, %v", b, err)
		}
		if string(b) == "FROZEN\n" {
			break
		}
	}
	for which, want := range map[string]string{"main": "is frozen by its cgroup /" + filepath.Base(group), "all": "is frozen (a thread waits in __refrigerator)"} {
		if said := ask(which); !strings.Contains(said, want) || !strings.Contains(said, "resume it first") {
			t.Errorf("%s: %q, want %q", which, said, want)
		}
	}
}
