package plugin

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/faultgraft/faultgraft/plugin/graft"
)

// checkWrapper looks at the shims that run: each starts its containers by the
// first runc in its PATH, which is the wrapper or is not.
func checkWrapper() graft.Check {
	c := graft.Check{Name: "runc wrapper"}
	shims, wrapped, err := wrappedShims("/proc")
	switch {
	case err != nil:
		c.Detail, c.Fix = err.Error(), "run as root on the host"
	case shims == 0:
		c.Detail = "no containerd-shim runs here, so that it cannot be told"
		c.Fix = "start a container and look again; docs/runc.md says how the wrapper is put in place"
	case wrapped == 0:
		c.Detail = "not in place: faults of nerdctl's and ctr's containers come a moment after their programs start"
		c.Fix = "docs/runc.md, if they must be there before"
	case wrapped < shims:
		c.OK, c.Detail = true, fmt.Sprintf("in place; %d of %d shims were started before it was", shims-wrapped, shims)
	default:
		c.OK, c.Detail = true, fmt.Sprintf("in place, for %d shims", shims)
	}
	return c
}

// wrappedShims counts the containerd-shims, and those whose runc is faultgraft.
func wrappedShims(proc string) (shims, wrapped int, err error) {
	names, err := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	if err != nil {
		return 0, 0, err
	}
	for _, dir := range names {
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil || !strings.HasPrefix(filepath.Base(exe), "containerd-shim-runc") {
			continue
		}
		environ, err := os.ReadFile(filepath.Join(dir, "environ"))
		if os.IsNotExist(err) {
			continue // it has just ended
		} else if err != nil {
			return shims, wrapped, err
		}
		shims++
		if isFaultgraft(firstRunc(environ)) {
			wrapped++
		}
	}
	return shims, wrapped, nil
}

// firstRunc is the runc that a process with that environment finds; empty: none.
func firstRunc(environ []byte) string {
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		path, ok := strings.CutPrefix(string(v), "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			file := filepath.Join(dir, "runc")
			if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 {
				return file
			}
		}
		return ""
	}
	return ""
}

// isFaultgraft reports whether a file is this program, or by its name another one of it.
func isFaultgraft(file string) bool {
	if file == "" {
		return false
	}
	st, err := os.Stat(file)
	if err != nil {
		return false
	}
	if own, err := os.Stat("/proc/self/exe"); err == nil && os.SameFile(st, own) {
		return true
	}
	to, err := filepath.EvalSymlinks(file)
	return err == nil && strings.Contains(filepath.Base(to), "faultgraft")
}
