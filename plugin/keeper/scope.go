package keeper

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"

	"github.com/faultgraft/faultgraft/plugin/graft"
)

// treeScope limits faults to a process tree, for targets that share their mount
// namespace with others. A process belongs to the tree if its first process is
// an ancestor; once it was seen there it stays in, because a daemon that
// detaches from its parent is still part of what was named.
type treeScope struct {
	root int
	mu   sync.Mutex
	in   map[uint32]uint64 // thread group id -> start time, as proof against PID reuse
}

// maxScope bounds the memory of processes seen; beyond it the memory starts anew.
const maxScope = 1 << 14

func newTreeScope(root int) *treeScope { return &treeScope{root: root, in: map[uint32]uint64{}} }

// contains is asked with the thread id of a FUSE request; 0 stands for the kernel itself.
func (s *treeScope) contains(tid uint32) bool {
	tgid, start, ok := threadGroup(int(tid))
	if !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in[uint32(tgid)] == start && start != 0 {
		return true
	}
	for p, hops := tgid, 0; p > 1 && hops < 1<<12; hops++ {
		stat, err := graft.ReadStat(p)
		if err != nil {
			return false
		}
		if p == s.root || stat.StartTime != 0 && s.in[uint32(p)] == stat.StartTime {
			if len(s.in) >= maxScope {
				clear(s.in)
			}
			s.in[uint32(tgid)] = start
			return true
		}
		p = stat.PPID
	}
	return false
}

// threadGroup is the process of a thread, and when that thread's group leader started (clock ticks).
func threadGroup(tid int) (tgid int, start uint64, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0, 0, false
	}
	_, rest, found := bytes.Cut(b, []byte("\nTgid:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	tgid, err = strconv.Atoi(string(line))
	if !found || err != nil {
		return 0, 0, false
	}
	stat, err := graft.ReadStat(tgid)
	return tgid, stat.StartTime, err == nil
}
