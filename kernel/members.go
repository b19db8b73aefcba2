package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Processes lists the processes in the cgroup and below it, as this process's
// PID namespace numbers them. Those of another namespace count as 0.
func (c Cgroup) Processes() ([]int, error) {
	found, err := c.again()
	if err != nil {
		return nil, err
	}
	dir := found.dir
	var pids []int
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist) && path != dir:
			return nil // it was removed meanwhile
		case err != nil || !d.IsDir():
			return err
		}
		more, err := readProcs(filepath.Join(path, "cgroup.procs"))
		pids = append(pids, more...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("processes of cgroup %s: %w", c.Path, err)
	}
	return pids, nil
}

// readProcs reads cgroup.procs. That of a threaded cgroup cannot be read; the
// domain above it lists its processes (Documentation/admin-guide/cgroup-v2.rst, Threads).
func readProcs(name string) ([]int, error) {
	text, err := os.ReadFile(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil // the cgroup was removed meanwhile
	case err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENODEV):
		return nil, err
	}
	pids, err := parseProcs(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return pids, nil
}

func parseProcs(text string) ([]int, error) {
	var pids []int
	for line := range strings.Lines(text) {
		pid, err := strconv.Atoi(strings.TrimSuffix(line, "\n"))
		if err != nil || pid < 0 {
			return nil, fmt.Errorf("%q is no process id", line)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// again looks the cgroup up by its path; one that was removed, or made anew
// since, is os.ErrNotExist.
func (c Cgroup) again() (Cgroup, error) {
	now, err := CgroupAt(c.Path)
	if err == nil && now.ID != c.ID {
		err = fmt.Errorf("cgroup %s: removed, and another one was made in its place: %w", c.Path, os.ErrNotExist)
	}
	return now, err
}

// Gone reports whether the cgroup was removed, also if another one has its path now.
func (c Cgroup) Gone() bool {
	_, err := c.again()
	return errors.Is(err, os.ErrNotExist)
}
