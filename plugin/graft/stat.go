package graft

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Stat is what is needed of /proc/PID/stat (proc_pid_stat(5)).
type Stat struct {
	Comm  string
	State byte // as ps shows it: R, S, D, Z …
	// PPID is the parent process.
	PPID int
	// Flags are the PF_* flags of include/linux/sched.h.
	Flags   uint64
	Threads int
	// StartTime is when the process started, clock ticks since boot; with the PID it names a process for good.
	StartTime uint64
}

// Ended says that no thread of the process runs any more. A first thread that
// ended before the others is a zombie too.
func (s Stat) Ended() bool {
	return s.State == 'X' || s.State == 'Z' && s.Threads <= 1
}

// Ending says that its first thread is about to end, or has ended, which that of a program in Go does with all others. It can stay so: at its
// end a process closes what it has open.
func (s Stat) Ending() bool { return s.State == 'X' || s.State == 'Z' || s.Flags&pfExiting != 0 }

// Of include/linux/sched.h.
const (
	pfExiting = 0x00000004 // PF_EXITING
	pfKthread = 0x00200000 // PF_KTHREAD
)

// ReadStat reads the stat file of a process; os.ErrNotExist: there is none of that id; ErrWithinExec: it cannot be had now.
func ReadStat(pid int) (Stat, error) {
	var s Stat
	var err error
	if !looks.look(pid, func() { s, err = readStat(pid) }) {
		return Stat{}, errWithinExec(pid)
	}
	return s, err
}

// readStat waits for a process that is within an execve(2).
func readStat(pid int) (Stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, syscall.ESRCH) {
		err = os.ErrNotExist
	}
	if err != nil {
		return Stat{}, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (Stat, error) {
	// comm may hold blanks and parentheses: the last ')' ends it.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return Stat{}, fmt.Errorf("stat line %.60q: no command name", b)
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 20 || len(f[0]) != 1 {
		return Stat{}, fmt.Errorf("stat line %.60q: %d fields after the name", b, len(f))
	}
	s := Stat{Comm: string(b[open+1 : end]), State: f[0][0]}
	var err error
	if s.PPID, err = strconv.Atoi(f[1]); err != nil {
		return s, fmt.Errorf("stat line: parent: %w", err)
	}
	if s.Flags, err = strconv.ParseUint(f[6], 10, 64); err != nil {
		return s, fmt.Errorf("stat line: flags: %w", err)
	}
	if s.Threads, err = strconv.Atoi(f[17]); err != nil {
		return s, fmt.Errorf("stat line: threads: %w", err)
	}
	if s.StartTime, err = strconv.ParseUint(f[19], 10, 64); err != nil {
		return s, fmt.Errorf("stat line: start time: %w", err)
	}
	return s, nil
}
