package tracer

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The parsers of proc(5) files: pure functions of their text.

// fdInfo is what /proc/PID/fdinfo/FD tells.
type fdInfo struct {
	pos     int64
	flags   int // with O_CLOEXEC of the slot
	mountID uint64
	locks   []Lock // POSIX locks of the process at this file
	lease   bool
}

func parseFdInfo(text []byte) (fdInfo, error) {
	var f fdInfo
	seen := false
	for line := range strings.Lines(string(text)) {
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		v = strings.TrimSpace(v)
		var err error
		switch k {
		case "pos":
			f.pos, err = strconv.ParseInt(v, 10, 64)
		case "flags":
			var n int64
			n, err = strconv.ParseInt(v, 8, 64)
			f.flags, seen = int(n), true
		case "mnt_id":
			f.mountID, err = strconv.ParseUint(v, 10, 64)
		case "lock":
			var l Lock
			var what string
			what, l, err = parseLock(v)
			switch what {
			case "POSIX":
				f.locks = append(f.locks, l)
			case "LEASE", "DELEG":
				f.lease = true
			}
		}
		if err != nil {
			return f, fmt.Errorf("line %q: %w", strings.TrimSpace(line), err)
		}
	}
	if !seen {
		return f, fmt.Errorf("no flags in %q", text)
	}
	return f, nil
}

// parseLock reads a lock as in /proc/locks and fdinfo (fs/locks.c,
// lock_get_status): "1: POSIX  ADVISORY  WRITE 123 fe:00:12 10 29".
func parseLock(s string) (what string, l Lock, err error) {
	f := strings.Fields(s)
	if len(f) > 1 && f[1] == "->" { // one that waits
		return "", l, nil
	}
	if len(f) < 8 {
		return "", l, fmt.Errorf("lock of %d fields", len(f))
	}
	if f[1] != "POSIX" {
		return f[1], l, nil
	}
	l.Type = unix.F_RDLCK
	if f[3] == "WRITE" {
		l.Type = unix.F_WRLCK
	}
	if l.Start, err = strconv.ParseInt(f[6], 10, 64); err != nil {
		return "", l, err
	}
	if f[7] != "EOF" {
		end, err := strconv.ParseInt(f[7], 10, 64)
		if err != nil {
			return "", l, err
		}
		if end < l.Start {
			return "", l, fmt.Errorf("lock ends at %d before its start %d", end, l.Start)
		}
		l.Len = end - l.Start + 1
	}
	return "POSIX", l, nil
}

// mapLine is one line of /proc/PID/maps.
type mapLine struct {
	start, end, offset uint64
	prot               int
	shared             bool
	dev, ino           uint64
	path               string // escaped as the kernel does, "" for anonymous memory
}

func parseMaps(text []byte) ([]mapLine, error) {
	var all []mapLine
	for line := range strings.Lines(string(text)) {
		m, err := parseMapLine(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("maps line %q: %w", line, err)
		}
		all = append(all, m)
	}
	return all, nil
}

func parseMapLine(line string) (m mapLine, err error) {
	var f [5]string
	rest := line
	for i := range f {
		f[i], rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
	}
	m.path = strings.TrimLeft(rest, " ")
	from, to, ok := strings.Cut(f[0], "-")
	major, minor, ok2 := strings.Cut(f[3], ":")
	if !ok || !ok2 || len(f[1]) != 4 {
		return m, fmt.Errorf("not an address range, permissions, offset, device and inode")
	}
	var maj, mnr uint64
	for _, n := range []struct {
		s    string
		base int
		bits int
		to   *uint64
	}{{from, 16, 64, &m.start}, {to, 16, 64, &m.end}, {f[2], 16, 64, &m.offset}, {major, 16, 32, &maj}, {minor, 16, 32, &mnr}, {f[4], 10, 64, &m.ino}} {
		if *n.to, err = strconv.ParseUint(n.s, n.base, n.bits); err != nil {
			return m, err
		}
	}
	if m.end <= m.start {
		return m, fmt.Errorf("empty range")
	}
	m.dev = unix.Mkdev(uint32(maj), uint32(mnr))
	for i, p := range []int{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
		if f[1][i] != '-' {
			m.prot |= p
		}
	}
	m.shared = f[1][3] == 's'
	return m, nil
}

// parseMapFlags reads the VmFlags of /proc/PID/smaps by start address.
func parseMapFlags(text []byte) map[uint64][]string {
	r := map[uint64][]string{}
	var start uint64
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "VmFlags:"); ok {
			r[start] = strings.Fields(v)
			continue
		}
		if m, err := parseMapLine(strings.TrimSuffix(line, "\n")); err == nil {
			start = m.start
		}
	}
	return r
}

// taskStatus is what /proc/PID/status tells.
type taskStatus struct {
	name    string
	state   byte
	tracer  int
	ppid    int
	seccomp int
	locked  string // VmLck, how much memory is locked: "0 kB"
	capEff  uint64 // effective capabilities
	kernel  bool   // a kernel thread
}

func parseStatus(text []byte) (taskStatus, error) {
	var s taskStatus
	for line := range strings.Lines(string(text)) {
		k, v, _ := strings.Cut(line, ":")
		v = strings.TrimSpace(v)
		var err error
		switch k {
		case "Name":
			s.name = v
		case "State":
			if v != "" {
				s.state = v[0]
			}
		case "TracerPid":
			s.tracer, err = strconv.Atoi(v)
		case "PPid":
			s.ppid, err = strconv.Atoi(v)
		case "Seccomp":
			s.seccomp, err = strconv.Atoi(v)
		case "VmLck":
			s.locked = v
		case "CapEff":
			s.capEff, err = strconv.ParseUint(v, 16, 64)
		case "Kthread": // Linux 6.8
			s.kernel = v == "1"
		}
		if err != nil {
			return s, fmt.Errorf("%s: %w", k, err)
		}
	}
	if s.state == 0 {
		return s, fmt.Errorf("no state in %q", text)
	}
	return s, nil
}

// parseFileLimit reads RLIMIT_NOFILE from /proc/PID/limits.
func parseFileLimit(text []byte) (l unix.Rlimit, err error) {
	for line := range strings.Lines(string(text)) {
		v, ok := strings.CutPrefix(line, "Max open files")
		if !ok {
			continue
		}
		f := strings.Fields(v)
		if len(f) < 2 {
			return l, fmt.Errorf("limits line %q", line)
		}
		for i, to := range []*uint64{&l.Cur, &l.Max} {
			if f[i] == "unlimited" {
				*to = unix.RLIM_INFINITY
			} else if *to, err = strconv.ParseUint(f[i], 10, 64); err != nil {
				return l, fmt.Errorf("limits line %q: %w", line, err)
			}
		}
		return l, nil
	}
	return l, fmt.Errorf("no limit of open files in %q", text)
}

const pfKthread = 0x00200000 // include/linux/sched.h

// parseStatFlags reads the task's flags, field 9 of /proc/PID/stat.
func parseStatFlags(text []byte) (uint64, error) {
	i := bytes.LastIndexByte(text, ')') // the name may hold anything
	if i < 0 {
		return 0, fmt.Errorf("no name in %q", text)
	}
	f := strings.Fields(string(text[i+1:]))
	if len(f) < 7 {
		return 0, fmt.Errorf("only %d fields in %q", len(f), text)
	}
	return strconv.ParseUint(f[6], 10, 64)
}

// cutDeleted splits the mark off that the kernel puts behind the path of a file
// without a name. A name that itself ends in the mark cannot be told apart.
func cutDeleted(link string) (path string, deleted bool) {
	return strings.CutSuffix(link, " (deleted)")
}

// sleeping says in which system call a thread sleeps, and where in its code.
type sleeping struct {
	nr     int64 // -1 if it is none, as at a page fault; then without arguments
	args   [6]uint64
	sp, pc uint64
}

// parseSyscall reads /proc/PID/syscall; ok is false for a thread that runs.
func parseSyscall(text []byte) (s sleeping, ok bool) {
	f := strings.Fields(string(text))
	if len(f) != 3 && len(f) != 9 { // "running"; else number, arguments, stack pointer, program counter
		return sleeping{}, false
	}
	nr, err := strconv.ParseInt(f[0], 10, 32)
	if err != nil {
		return sleeping{}, false
	}
	s.nr = nr
	var v [8]uint64
	n := len(f) - 1
	for i := range n {
		if v[i], err = strconv.ParseUint(f[1+i], 0, 64); err != nil {
			return sleeping{}, false
		}
	}
	s.sp, s.pc = v[n-2], v[n-1]
	copy(s.args[:], v[:n-2])
	return s, true
}
