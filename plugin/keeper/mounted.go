package keeper

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/faultgraft/faultgraft/mountinfo"
	"github.com/faultgraft/faultgraft/plugin/graft"
	"golang.org/x/sys/unix"
)

// mountWatch knows at which names of a layer the target has mounted something.
type mountWatch struct {
	graft string
	mu    sync.Mutex
	file  *os.File // mountinfo of the target; poll(2) tells of changes (proc_pid_mountinfo(5))
	known []string
}

// watchMounts begins to watch the mounts of a process.
func watchMounts(pid int, graft string) (*mountWatch, error) {
	name := fmt.Sprintf("/proc/%d/mountinfo", pid)
	// Not os.Open: Go's poller would take the file in, and see the changes in our place.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("watch the mounts of process %d: %w", pid, err)
	}
	w := &mountWatch{graft: graft, file: os.NewFile(uintptr(fd), name)}
	if err := w.read(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *mountWatch) close() { _ = w.file.Close() } // only read

func (w *mountWatch) read() error {
	if _, err := w.file.Seek(0, 0); err != nil {
		return fmt.Errorf("%s: %w", w.file.Name(), err)
	}
	mounts, err := mountinfo.Read(w.file)
	if err != nil {
		return fmt.Errorf("%s: %w", w.file.Name(), err)
	}
	w.known = graft.MountsOnLayer(mounts, w.graft)
	return nil
}

// below reports whether something is mounted on the layer at a path, as the target
// sees it, or at a path below. A target that has ended has no mounts.
func (w *mountWatch) below(path string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := []unix.PollFd{{Fd: int32(w.file.Fd()), Events: unix.POLLPRI}}
	if n, err := unix.Poll(p, 0); err != nil || n > 0 {
		if w.read() != nil {
			return false
		}
	}
	return slices.ContainsFunc(w.known, func(at string) bool {
		return at == path || strings.HasPrefix(at, strings.TrimSuffix(path, "/")+"/")
	})
}
