package fusefs

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// handles makes the open files.
func (r *restorer) handles() error {
	t := &r.l.handles
	t.last = r.from.head.lastHandle.Load()
	t.kept.head.lastHandle.Store(t.last)
	for _, v := range r.from.handles {
		s := v.at
		n := r.l.nodes.byID[s.node]
		if n == nil || t.m[s.id] != nil || s.id > t.last {
			return fmt.Errorf("open file %d of node %d: there is no such node, or the file is there twice", s.id, s.node)
		}
		h := &handle{id: s.id, fd: -1, node: n, dir: s.dir, adopted: s.adopted, ofd: s.ofd, exact: s.exact, mode: s.mode, known: s.learned.Load()}
		if old := s.fd.Load(); old >= 0 {
			fd, err := r.fd(old)
			if err != nil {
				return fmt.Errorf("open file %d of node %d: %w", s.id, s.node, err)
			}
			h.fd = fd
		}
		h.flags.Store(s.flags.Load())
		h.cut.Store(s.cut.Load())
		h.ofdOwner.Store(s.ofdOwner.Load())
		h.posixOwner.Store(s.posixOwner.Load())
		switch h.mode {
		case modeNone: // a directory
		case modeDirect, modeCached:
			n.open.direct.Add(1)
			n.open.used = true
		default:
			n.open.through.Add(1)
		}
		t.m[h.id] = h
		t.kept.handle(h)
	}
	for _, n := range r.l.nodes.byID {
		if n.open.none() && n.open.backing != 0 {
			r.l.parked.add(r.l, n)
		}
	}
	return nil
}

// lockOwners makes the owners of POSIX locks. What they hold their descriptors say.
func (r *restorer) lockOwners() error {
	for _, v := range r.from.owners {
		s := v.at
		k := key{major: s.major, minor: s.minor, ino: s.ino, mount: s.mount}
		t := r.locks[k]
		if t == nil { // its node was about to go
			continue
		}
		if t.owners[s.id] != nil {
			return fmt.Errorf("owner %d of locks at inode %d is there twice", s.id, s.ino)
		}
		fd, err := r.fd(s.fd)
		if err != nil {
			return fmt.Errorf("locks at inode %d: %w", s.ino, err)
		}
		spans, err := heldOFD(fd)
		if err != nil {
			return fmt.Errorf("locks at inode %d: %w", s.ino, err)
		}
		if len(spans) == 0 {
			r.taken = r.taken[:len(r.taken)-1]
			_ = unix.Close(fd) // whoever waits for a lock asks again
			continue
		}
		o := &lockOwner{id: s.id, fd: fd, pid: s.pid.Load(), fh: s.fh.Load(), spans: spans}
		o.kept = t.kept.owner(o, k)
		if t.owners == nil {
			t.owners = map[uint64]*lockOwner{}
		}
		t.owners[o.id] = o
	}
	return nil
}

// heldOFD are the OFD locks of a description, as fdinfo of proc(5) tells them (lock_get_status in fs/locks.c):
//
//	lock:	1: OFDLCK  ADVISORY  WRITE -1 00:2c:1234 0 EOF
func heldOFD(fd int) ([]span, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return nil, err
	}
	return parseOFD(string(b))
}

func parseOFD(info string) ([]span, error) {
	var held []span
	for line := range strings.Lines(info) {
		text, is := strings.CutPrefix(line, "lock:")
		f := strings.Fields(text)
		if !is || len(f) < 2 || f[1] != "OFDLCK" {
			continue
		}
		if len(f) != 8 {
			return nil, fmt.Errorf("a lock that /proc tells as %q", line)
		}
		s := span{typ: unix.F_RDLCK, end: toEnd}
		if f[3] == "WRITE" {
			s.typ = unix.F_WRLCK
		}
		var err error
		if s.start, err = strconv.ParseInt(f[6], 10, 64); err != nil {
			return nil, fmt.Errorf("a lock that /proc tells as %q: %w", line, err)
		}
		if f[7] != "EOF" {
			if s.end, err = strconv.ParseInt(f[7], 10, 64); err != nil || s.end == math.MaxInt64 {
				return nil, fmt.Errorf("a lock that /proc tells as %q: %w", line, err)
			}
		}
		held = append(held, s)
	}
	return held, nil
}

// rules keeps what the rules of the process before have counted for those that SetRules is going to set.
func (r *restorer) rules() error {
	l := r.l
	for _, v := range r.from.rules {
		l.keptRules.left = append(l.keptRules.left, l.keptRules.table.ruleOf(v.at))
	}
	for _, v := range r.from.faults {
		c, err := v.at.faults()
		if err != nil {
			return err
		}
		l.counted.restore(c)
	}
	return nil
}
