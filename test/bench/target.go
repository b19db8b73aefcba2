package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// holder is a process in a mount namespace of its own, with open files.
type holder struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	atEnd func() // ends what else runs in the namespace
}

func (b *bench) hold(dir string, files int) (*holder, error) { return b.holdWith(dir, files, 1) }

// holdWith is hold with a number of threads that wait for input.
func (b *bench) holdWith(dir string, files, threads int) (*holder, error) {
	h := &holder{cmd: exec.Command("unshare", "--mount", "--propagation", "private", "/proc/self/exe", "target-hold", dir, strconv.Itoa(files), strconv.Itoa(threads))}
	// /proc/self/exe would be unshare by then.
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	h.cmd.Args[4] = exe
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	h.cmd.Stderr = os.Stderr
	if err := h.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		return nil, fmt.Errorf("the target did not start: %w", err)
	}
	return h, nil
}

func (h *holder) pid() string { return strconv.Itoa(h.cmd.Process.Pid) }

func (h *holder) end() {
	if h.atEnd != nil {
		h.atEnd()
	}
	_ = h.in.Close()
	_ = h.cmd.Wait() // it ends with its input
}

// inside is a command in the target's mount namespace.
func (h *holder) inside(args ...string) *exec.Cmd {
	if args[0] == "/proc/self/exe" {
		if exe, err := os.Executable(); err == nil {
			args[0] = exe
		}
	}
	cmd := exec.Command("nsenter", append([]string{"-m", "-t", h.pid(), "--"}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// target is what this binary does as a target.
func target(what string, args []string) error {
	switch {
	case what == "target-hold" && (len(args) == 2 || len(args) == 3):
		files, err := strconv.Atoi(args[1])
		threads := 1
		if err == nil && len(args) == 3 {
			threads, err = strconv.Atoi(args[2])
		}
		if err != nil {
			return err
		}
		return holdFiles(args[0], files, threads)
	case what == "target-loopback" && len(args) == 3:
		return loopback(args[1], args[2], args[0] == "direct")
	case what == "target-meta" && len(args) == 2:
		v, err := meta(args[0], args[1])
		if err == nil {
			_, err = fmt.Println(v)
		}
		return err
	}
	return fmt.Errorf("%s %q: not a target of this benchmark", what, args)
}

// holdFiles opens files and waits for the end of its input with at least so many threads.
func holdFiles(dir string, files, threads int) error {
	for i := range files {
		_, err := unix.Open(filepath.Join(dir, fmt.Sprintf("f%04d", i)), unix.O_RDWR|unix.O_CREAT, 0o644)
		if err != nil {
			return fmt.Errorf("open file %d: %w", i, err)
		}
	}
	var wait [2]int
	if err := unix.Pipe2(wait[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	for range threads - 1 {
		go func() {
			runtime.LockOSThread()
			_, _ = unix.Read(wait[0], make([]byte, 1)) // nothing is ever written
		}()
	}
	for {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		if len(tasks) >= threads {
			break
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
