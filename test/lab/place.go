package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// treeRoot finds the root of faultgraft's source tree at or above the working folder.
func treeRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(b, []byte("module github.com/faultgraft/faultgraft\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not in faultgraft's source tree", wd)
		}
	}
}

// labDir resolves the lab's folder as lab.sh does.
func labDir(dir string) (string, error) {
	if dir == "" {
		dir = os.Getenv("FAULTGRAFT_LAB")
	}
	if dir != "" {
		return filepath.Abs(dir)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the lab: %w; set FAULTGRAFT_LAB to a folder", err)
	}
	return filepath.Join(cache, "faultgraft", "lab"), nil
}

// lockFile takes an exclusive flock(2) on path; closing the file gives it back.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the lab: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("another process has the lab (%s): %w", path, ctx.Err()), f.Close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// source is the name under which the lab's tmpfs on /run is mounted: whoever
// sees that mount is in the lab. lab.sh computes the same.
func (l *Lab) source() string {
	return fmt.Sprintf("faultgraft-lab-%x", sha256.Sum256([]byte(l.dir)))[:len("faultgraft-lab-")+12]
}

// isMember says whether the process is in the mount namespace of the lab with that source.
func isMember(source string, pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return false // it ended
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " /run ") && strings.Contains(line, " - tmpfs "+source+" ") {
			return true
		}
	}
	return false
}

func readPID(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s does not hold a process number: %w", path, err)
	}
	return pid, nil
}

// tailWriter keeps the last 2 KiB that were written to it.
type tailWriter struct{ buf []byte }

func (w *tailWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	if n := len(w.buf) - 2048; n > 0 {
		w.buf = append(w.buf[:0], w.buf[n:]...)
	}
	return len(p), nil
}

func (w *tailWriter) String() string { return strings.TrimSpace(string(w.buf)) }
