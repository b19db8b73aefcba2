package keeper

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
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
		parent, began, ok := statFields(p)
		if !ok {
			return false
		}
		if p == s.root || began != 0 && s.in[uint32(p)] == began {
			if len(s.in) >= maxScope {
				clear(s.in)
			}
			s.in[uint32(tgid)] = start
			return true
		}
		p = parent
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
	_, start, ok = statFields(tgid)
	return tgid, start, ok
}

// statFields reads the parent and the start time from /proc/PID/stat (proc_pid_stat(5)).
func statFields(pid int) (ppid int, start uint64, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, false
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return 0, 0, false
	}
	ppid, err = strconv.Atoi(string(f[1]))
	if err != nil {
		return 0, 0, false
	}
	start, err = strconv.ParseUint(string(f[19]), 10, 64)
	return ppid, start, err == nil
}
