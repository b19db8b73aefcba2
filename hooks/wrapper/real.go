package wrapper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// guard names the variable in the real runtime's environment that shows a
// wrapper which was taken for it; its value is the wrapper's PID.
const guard = "FAULTGRAFT_RUNTIME_WRAPPER"

// FindReal gives the path of the real runtime: the one that was named, or the
// first on PATH with the runtime's name that is not faultgraft.
func (inv *Invocation) FindReal() (string, error) {
	if pid := os.Getenv(guard); pid == strconv.Itoa(os.Getpid()) || pid != "" && pid == strconv.Itoa(os.Getppid()) {
		return "", errLoop
	}
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("look for the real runtime: %w", err)
	}
	name, named := inv.Name, inv.Real != ""
	if named {
		name = inv.Real
	}
	if strings.Contains(name, "/") {
		if err := runnable(name, self); err != nil {
			return "", fmt.Errorf("the real runtime %s: %w", name, err)
		}
		return filepath.Abs(name)
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if !filepath.IsAbs(dir) {
			continue // as os/exec has it, a runtime is not looked for in the working directory
		}
		if path := filepath.Join(dir, name); runnable(path, self) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s but faultgraft's wrapper in PATH=%s; name the real runtime by --real or FAULTGRAFT_RUNTIME", name, os.Getenv("PATH"))
}

var errOurselves = errors.New("it is faultgraft's wrapper")

// runnable says why a file is not the real runtime.
func runnable(path string, self fs.FileInfo) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case os.SameFile(info, self):
		return errOurselves
	case !info.Mode().IsRegular():
		return errors.New("not a regular file")
	case info.Mode().Perm()&0o111 == 0:
		return errors.New("not executable")
	}
	// Another copy of faultgraft is no runtime either.
	if to, err := filepath.EvalSymlinks(path); err == nil && strings.Contains(filepath.Base(to), "faultgraft") {
		return errOurselves
	}
	return nil
}

// Environ is this process's environment with the guard.
func Environ() []string {
	env := os.Environ()
	out := make([]string, 0, len(env)+1)
	for _, v := range env {
		if !strings.HasPrefix(v, guard+"=") {
			out = append(out, v)
		}
	}
	return append(out, guard+"="+strconv.Itoa(os.Getpid()))
}

// Become replaces this process by the real runtime, with the same arguments,
// descriptors, signal mask and PID. It returns only if that failed.
func (inv *Invocation) Become() error {
	real, err := inv.FindReal()
	if err != nil {
		return err
	}
	if err := syscall.Exec(real, append([]string{real}, inv.Args...), Environ()); err != nil {
		return fmt.Errorf("run the real runtime %s: %w", real, err)
	}
	return nil
}
