package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// holder is a process in a mount namespace of its own, with open files.
type holder struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

func (b *bench) hold(dir string, files int) (*holder, error) {
	h := &holder{cmd: exec.Command("unshare", "--mount", "--propagation", "private", "/proc/self/exe", "target-hold", dir, strconv.Itoa(files))}
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
	case what == "target-hold" && len(args) == 2:
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		for i := range n {
			_, err := unix.Open(filepath.Join(args[0], fmt.Sprintf("f%04d", i)), unix.O_RDWR|unix.O_CREAT, 0o644)
			if err != nil {
				return fmt.Errorf("open file %d: %w", i, err)
			}
		}
		fmt.Println("ready")
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	case what == "target-meta" && len(args) == 2:
		v, err := meta(args[0], args[1])
		if err == nil {
			_, err = fmt.Println(v)
		}
		return err
	}
	return fmt.Errorf("%s %q: not a target of this benchmark", what, args)
}

// metaFiles is how many files one measurement of metadata works on.
const metaFiles = 2000

// meta does one operation on many files and returns µs per operation. Files are
// made and removed outside the measured time where that is not the operation.
func meta(op, dir string) (float64, error) {
	name := func(i int) string { return filepath.Join(dir, fmt.Sprintf("meta%04d", i)) }
	create := func(i int) error {
		fd, err := unix.Open(name(i), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}
	var st unix.Stat_t
	buf := make([]byte, 64)
	ops := map[string]func(int) error{
		"create": create,
		"stat":   func(i int) error { return unix.Stat(name(i), &st) },
		"unlink": func(i int) error { return unix.Unlink(name(i)) },
		"open": func(i int) error {
			fd, err := unix.Open(name(i), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if _, err := unix.Read(fd, buf); err != nil {
				return err
			}
			return unix.Close(fd)
		},
	}
	f := ops[op]
	all := func(f func(int) error) error {
		for i := range metaFiles {
			if err := f(i); err != nil {
				return err
			}
		}
		return nil
	}
	if op != "create" {
		if err := all(create); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	if err := all(f); err != nil {
		return 0, err
	}
	took := time.Since(start)
	if op != "unlink" {
		if err := all(ops["unlink"]); err != nil {
			return 0, err
		}
	}
	return float64(took.Microseconds()) / metaFiles, nil
}
