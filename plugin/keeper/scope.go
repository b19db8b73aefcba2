package keeper

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

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
	last map[uint32]verdict
}

// verdict is what was found of a thread.
type verdict struct {
	in    bool
	until time.Time
}

// verdictTime is how long a verdict stands without a look at /proc, which takes
// longer than an operation of the layer. A thread's id is not given to another
// within it: the kernel gives ids in turn (alloc_pid in kernel/pid.c), 32,768 of
// them at the least.
const verdictTime = 100 * time.Millisecond

// maxScope bounds the memory of processes seen; beyond it the memory starts anew.
const maxScope = 1 << 14

func newTreeScope(root int) *treeScope {
	return &treeScope{root: root, in: map[uint32]uint64{}, last: map[uint32]verdict{}}
}

// contains is asked with the thread id of a FUSE request; 0 stands for the kernel itself.
func (s *treeScope) contains(tid uint32) bool {
	now := time.Now()
	s.mu.Lock()
	v, known := s.last[tid]
	s.mu.Unlock()
	if known && now.Before(v.until) {
		return v.in
	}
	v = verdict{in: s.look(tid), until: now.Add(verdictTime)}
	s.mu.Lock()
	if len(s.last) >= maxScope {
		clear(s.last)
	}
	s.last[tid] = v
	s.mu.Unlock()
	return v.in
}

// look finds out from /proc.
func (s *treeScope) look(tid uint32) bool {
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
	if tgid, ok = threadGroupIn(b); !ok {
		return 0, 0, false
	}
	stat, err := graft.ReadStat(tgid)
	return tgid, stat.StartTime, err == nil
}

// threadGroupIn reads proc_pid_status(5), in which a newline of a process's name is escaped.
func threadGroupIn(status []byte) (tgid int, ok bool) {
	_, rest, found := bytes.Cut(status, []byte("\nTgid:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	tgid, err := strconv.Atoi(string(line))
	return tgid, found && err == nil && tgid > 0
}
