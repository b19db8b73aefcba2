package fusefs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// callerEnv marks a process that makes the calls of tests on a layer whose servers are killed. The test itself makes none: it
// holds the device, and a process that does so and waits for the layer cannot be killed.
const callerEnv = "FUSEFS_TEST_CALLER"

type callerCommand struct {
	Case, Step, Dir string
}

// caller is such a process, as the test sees it.
type caller struct {
	testing.TB
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
}

func (f *fragile) caller() *caller {
	f.Helper()
	t := f.TB
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), callerEnv+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	f.callers = append(f.callers, cmd)
	return &caller{TB: t, cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(out)}
}

// begin has it begin a step; the result comes when it is done.
func (c *caller) begin(name, step, dir string) <-chan string {
	c.Helper()
	must(c, c.in.Encode(callerCommand{name, step, dir}))
	done := make(chan string, 1)
	go func() {
		var r string
		if err := c.out.Decode(&r); err != nil {
			r = "the caller: " + err.Error()
		}
		done <- r
	}()
	return done
}

func (c *caller) wait(done <-chan string, what string) string {
	c.Helper()
	select {
	case r := <-done:
		return r
	case <-time.After(patience):
		stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", c.cmd.Process.Pid))
		c.Fatalf("%s hangs: its threads are %q, the first in the kernel:\n%s", what, taskStates(c.cmd.Process.Pid), stack)
		return ""
	}
}

func (c *caller) do(name, step, dir string) string {
	c.Helper()
	return c.wait(c.begin(name, step, dir), name+": "+step)
}

// calls is the state of a caller's calls in one directory.
type calls struct {
	dir string
	fds map[string]int
	// shared is a map of a file.
	shared []byte
	out    strings.Builder
}

func (c *calls) path(name string) string { return filepath.Join(c.dir, name) }

// note notes the result of a call.
func (c *calls) note(what string, err error) {
	result := "ok"
	var e syscall.Errno
	if errors.As(err, &e) {
		result = unix.ErrnoName(e)
	} else if err != nil {
		result = err.Error()
	}
	fmt.Fprintf(&c.out, "%s: %s\n", what, result)
}

// need is for what has to be there before the call that the test is about.
func (c *calls) need(err error) {
	if err != nil {
		c.note("prepare", err)
	}
}

func (c *calls) open(name string, flags int) int {
	fd, err := unix.Open(c.path(name), flags|unix.O_CLOEXEC, 0o644)
	c.note("open "+name, err)
	c.fds[name] = fd
	return fd
}

func (c *calls) file(name, data string) { c.need(os.WriteFile(c.path(name), []byte(data), 0o644)) }

// makeCalls is the main function of a caller.
func makeCalls() int {
	unix.Umask(0)
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	all := map[string]*calls{}
	for {
		var q callerCommand
		if in.Decode(&q) != nil {
			return 0
		}
		c := all[q.Dir]
		if c == nil {
			c = &calls{dir: q.Dir, fds: map[string]int{}}
			all[q.Dir] = c
		}
		c.out.Reset()
		switch q.Step {
		case "load":
			load(c, q.Case)
		case "sync": // asks the server
			var st unix.Statx_t
			c.note("stat", unix.Statx(unix.AT_FDCWD, c.dir, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st))
		case "move":
			c.moveTo(q.Case)
		default:
			c.step(q)
		}
		if out.Encode(c.out.String()) != nil {
			return 1
		}
	}
}

func (c *calls) step(q callerCommand) {
	for _, k := range resentCases {
		if k.name != q.Case {
			continue
		}
		switch q.Step {
		case "prepare":
			c.need(os.Mkdir(c.dir, 0o777))
			if k.prepare != nil {
				k.prepare(c)
			}
		case "act":
			k.act(c)
		case "close":
			for name, fd := range c.fds {
				c.note("close", unix.Close(fd))
				delete(c.fds, name)
			}
		case "finish":
			if k.finish != nil {
				k.finish(c)
			}
			for _, fd := range c.fds {
				_ = unix.Close(fd)
			}
			clear(c.fds)
			c.describe()
		}
	}
}

// moveTo opens what is open anew in another directory, which the calls are about from here on.
func (c *calls) moveTo(dir string) {
	c.dir = dir
	for name, fd := range c.fds {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil { // the call that was to open it was cut short
			continue
		}
		other, err := unix.Open(c.path(name), flags|unix.O_CLOEXEC, 0)
		c.need(err)
		c.need(unix.Dup3(other, fd, unix.O_CLOEXEC))
		c.need(unix.Close(other))
		if c.shared != nil {
			c.need(unix.Munmap(c.shared))
			c.share(fd)
		}
	}
}

// describe tells all that is to be seen in the directory.
func (c *calls) describe() {
	var lines []string
	err := filepath.WalkDir(c.dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		rel, _ := filepath.Rel(c.dir, p)
		line := fmt.Sprintf("%s mode %o nlink %d uid %d", rel, st.Mode, st.Nlink, st.Uid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size %d blocks %t %q", st.Size, st.Blocks > 0, bytes.TrimRight(data, "\x00"))
		case unix.S_IFLNK:
			to, _ := os.Readlink(p)
			line += " -> " + to
		}
		value := make([]byte, 64)
		if n, err := unix.Lgetxattr(p, "user.test", value); err == nil {
			line += fmt.Sprintf(" user.test=%q", value[:n])
		}
		lines = append(lines, line)
		return nil
	})
	sort.Strings(lines)
	fmt.Fprintf(&c.out, "%s\n", strings.Join(lines, "\n"))
	if err != nil {
		c.note("walk", err)
	}
}

// as runs f as another user.
func as(uid int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		_, _, _ = unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_SETRESGID, uintptr(uid), uintptr(uid), uintptr(uid))
		_, _, _ = unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		f()
	}()
	<-done
}
