package tracer_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

var buildHungFS = sync.OnceValues(func() (string, error) {
	dir, err := buildTarget() // which is removed at the end
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "hungfs")
	if os.Getenv(prebuilt) != "" {
		return bin, nil
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		return "", fmt.Errorf("go is not installed: %w", err)
	}
	if out, err := exec.Command(goTool, "build", "-o", bin, "../test/hungfs").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build hungfs: %w\n%s", err, out)
	}
	return bin, nil
})

// silentFile is a file of a file system that can hang, see test/hungfs, which is told by tell.
func silentFile(t *testing.T) (fd int, tell func(string)) {
	t.Helper()
	needRoot(t)
	bin, err := buildHungFS()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	folder, point := filepath.Join(dir, "folder"), filepath.Join(dir, "point")
	if err := errors.Join(os.Mkdir(folder, 0o755), os.Mkdir(point, 0o755), os.WriteFile(filepath.Join(folder, "f"), []byte("data"), 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, folder, point)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(out)
	hear := func(want string) {
		t.Helper()
		if line, err := said.ReadString('\n'); err != nil || line != want+"\n" {
			t.Errorf("hungfs says %q: %v", line, err)
		}
	}
	tell = func(what string) {
		t.Helper()
		if _, err := fmt.Fprintln(in, what); err != nil {
			t.Error(err)
		}
		hear("ok")
	}
	hear("ready")
	fd, err = unix.Open(filepath.Join(point, "f"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tell("go")
		_ = unix.Close(fd)
		_ = in.Close() // it unmounts, and ends
		if err := cmd.Wait(); err != nil {
			t.Errorf("hungfs: %v", err)
		}
	})
	return fd, tell
}

// What is called while a target stands may wait for a file system that does not answer, in a sleep that nothing ends. The target goes on with its
// old files all the same, and the next swap is made.
func TestCallbackHangs(t *testing.T) {
	for name, in := range map[string]func(o *tracer.Options, wait func()){
		"settle": func(o *tracer.Options, wait func()) {
			o.Settle = func(*tracer.Description, int) error { wait(); return nil }
		},
		"locks": func(o *tracer.Options, wait func()) {
			o.Locks = func(*tracer.Object) []tracer.Lock { wait(); return nil }
		},
		"seized":    func(o *tracer.Options, wait func()) { o.Seized = func() error { wait(); return nil } },
		"stopped":   func(o *tracer.Options, wait func()) { o.Stopped = func() error { wait(); return nil } },
		"exchanged": func(o *tracer.Options, wait func()) { o.Exchanged = func() error { wait(); return nil } },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fd, tell := silentFile(t)
			at := newPlace(t)
			p := start(t, "target", "files", at.a, "20", "3")
			before := status(t, p.pid())
			s := newSwapper(t, at, p.pid())
			o := s.forward()
			back := make(chan struct{}, 1)
			in(&o, func() {
				var b [4]byte
				_, _ = unix.Pread(fd, b[:], 0)
				select {
				case back <- struct{}{}:
				default:
				}
			})
			undone := false
			o.Undo = func() error { undone = true; return nil }
			tell("hang")
			_, err := tracer.Swap(context.Background(), o)
			if err == nil || !strings.Contains(err.Error(), "no answer within") || !strings.Contains(err.Error(), "request_wait_answer") {
				t.Errorf("swap: %v", err)
			}
			if unknown := errors.Is(err, tracer.ErrUnfinished); unknown != (name == "stopped") || undone {
				t.Errorf("undone %v, swap: %v", undone, err)
			}
			if len(back) > 0 {
				t.Error("the file system has answered")
			}
			p.check()
			if now := status(t, p.pid()); now != before {
				t.Errorf("the target is\n%s\nand was\n%s", now, before)
			}
			if n := onMount(t, at.mntB, p.pid()); n > 0 {
				t.Errorf("%d objects were swapped", n)
			}
			tell("go")
			select {
			case <-back:
			case <-time.After(30 * time.Second):
				t.Error("the call does not come back")
			}
			s.drop()
			swap(t, s.forward())
			swap(t, s.backward())
			p.check()
			p.quit()
		})
	}
}

// hangEnv has the test binary be a swapper that hangs, or what it hangs at.
const hangEnv = "TRACER_TEST_HANG"

func beHung() {
	var p place
	var pid, other int
	switch n, _ := fmt.Sscan(os.Getenv(hangEnv), &pid, &other, &p.a, &p.b, &p.mntA, &p.mntB); n {
	case 0: // descriptor 3 is closed by the execve, as Go's program starts with it
		unix.CloseOnExec(3)
		fmt.Println("ready")
		_, _ = fmt.Scanln()
		_ = unix.Exec("/bin/true", []string{"true"}, nil)
	case 6:
		s := &swapper{t: &testing.B{}, at: &p, pid: pid}
		o := s.forward()
		o.Deadline = 10 * time.Second
		o.Processes = func() ([]int, error) { return []int{pid, other}, nil }
		o.Seized = func() error {
			fmt.Println("seized")
			_, _ = fmt.Scanln()
			return nil
		}
		o.Hung = func(what string) {
			fmt.Println(what)
			os.Exit(7)
		}
		_, err := tracer.Swap(context.Background(), o)
		fmt.Println(err)
	}
	os.Exit(1)
}

// What the tracing thread waits for itself may have no end either, but with its own: a process that it looks at comes into an execve that hangs, while
// another one stands. The swapper is told to end itself, and the target goes on with its old files.
func TestTracingThreadHangs(t *testing.T) {
	fd, tell := silentFile(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "20", "3")
	before := status(t, p.pid())
	role := func(env string, files ...*os.File) (cmd *exec.Cmd, in io.Writer, out *bufio.Scanner) {
		t.Helper()
		cmd = exec.Command(self)
		cmd.Env, cmd.ExtraFiles, cmd.Stderr = append(os.Environ(), hangEnv+"="+env), files, os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd, in, bufio.NewScanner(pipe)
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(own), "silent")
	other, goOn, said := role("exec", file)
	if !said.Scan() || said.Text() != "ready" {
		t.Fatalf("the process says %q", said.Text())
	}
	cmd, seized, told := role(fmt.Sprintln(p.pid(), other.Process.Pid, at.a, at.b, at.mntA, at.mntB))
	if !told.Scan() || told.Text() != "seized" {
		t.Fatalf("the swapper says %q", told.Text())
	}
	t.Cleanup(func() { tell("go") }) // else what was started cannot be killed
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	tell("hang closes") // from here on no process can be started: it would close copies of the file
	if _, err := fmt.Fprintln(goOn); err != nil {
		t.Fatal(err)
	}
	// Who looks at it waits, but for kernels that close files before they let nobody look (begin_new_exec in fs/exec.c, seen on Linux 6.12.117).
	looksWait := false
	waitFor(t, func() bool {
		waitsIn := make(chan string, 1)
		go func() {
			_, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", other.Process.Pid))
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", other.Process.Pid))
			waitsIn <- string(b)
		}()
		select {
		case function := <-waitsIn:
			return function == "request_wait_answer" // of FUSE
		case <-time.After(time.Second):
			looksWait = true
			return true
		}
	})
	if _, err := fmt.Fprintln(seized); err != nil {
		t.Fatal(err)
	}
	if !looksWait {
		if !told.Scan() || told.Text() != "<nil>" {
			t.Errorf("the swapper says %q", told.Text())
		}
		p.check()
		p.quit()
		t.Skip("this kernel lets others look at a process that waits in an execve to close a file: nothing hangs, and the swap was made")
	}
	want := fmt.Sprintf("a look at process %d (", other.Process.Pid)
	if !told.Scan() || !strings.HasPrefix(told.Text(), want) || !strings.Contains(told.Text(), "has come no further") {
		t.Errorf("the swapper says %q, not %q", told.Text(), want)
	}
	t.Log(told.Text())
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("the swapper: %v", err)
	}
	p.check()
	waitFor(t, func() bool { return status(t, p.pid()) == before })
	if n := onMount(t, at.mntB, p.pid()); n > 0 {
		t.Errorf("%d objects were swapped", n)
	}
	p.quit()
}
