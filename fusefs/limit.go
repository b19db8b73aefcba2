package fusefs

import (
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// nodeBudget is how many nodes, each a descriptor, may be known before names
// of files that nobody has open are taken out of the kernel's cache. 0 until
// the limit was looked at.
var nodeBudget atomic.Int64

// raiseFileLimit raises RLIMIT_NOFILE to fs.nr_open where the process may
// (CAP_SYS_RESOURCE), else to its hard limit, and sets the budget from it.
func raiseFileLimit(l *slog.Logger) {
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		l.Warn("read the limit of open files", "err", err)
		return
	}
	want := have
	want.Cur = want.Max
	if b, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil && n > want.Max {
			want = unix.Rlimit{Cur: n, Max: n}
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
		want = unix.Rlimit{Cur: have.Max, Max: have.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
			l.Warn("raise the limit of open files", "err", err)
			want = have
		}
	}
	nodeBudget.Store(int64(min(want.Cur, math.MaxInt32)) / 2)
}

// crowded says that no node should be made that the kernel has not asked for.
func (l *Layer) crowded() bool {
	b := nodeBudget.Load()
	return b > 0 && int64(l.nodes.count()) > b/2
}

// trim keeps the number of nodes within the budget: it asks the kernel to drop
// the names of files that are not open, which gives their nodes back. It
// does its work beside the request that calls it.
func (l *Layer) trim() {
	b := nodeBudget.Load()
	if b == 0 || l.notify == nil || int64(l.nodes.count()) <= b || !l.trimming.CompareAndSwap(false, true) {
		return
	}
	var idle []link
	l.nodes.mu.RLock()
	for _, n := range l.nodes.byID {
		// Not directories: one may be somebody's working directory, which would then look deleted.
		if n.kind != unix.S_IFDIR && n.open.none() && len(n.names) > 0 {
			idle = append(idle, n.names...)
		}
		if int64(len(idle)) > b/4 {
			break
		}
	}
	l.nodes.mu.RUnlock()
	l.notify.start(func() {
		defer l.trimming.Store(false)
		for _, k := range idle {
			if l.mounted(k.dir, k.name) {
				continue
			}
			_ = l.notify.dropEntry(k.dir.id, k.name) // ENOENT: gone by itself
		}
	})
}
