package graft

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lookPatience is how long a look at one process may take. Most of /proc/PID waits while the process is within
// execve(2): the kernel holds its exec_update_lock until it has closed the close-on-exec files (begin_new_exec and
// do_close_on_exec of fs/exec.c, ptrace_may_access of kernel/ptrace.c; seen on Linux 6.18). If one of these is on a
// file system that does not answer, whoever looks waits as long as that. Any process of the machine can be so.
// What counts is the time that the look waits in the kernel: on a busy machine it may take long to come to that.
const (
	lookPatience = time.Second
	lookTick     = lookPatience / 10
)

// onlooker looks at processes, and goes on without those that cannot be looked at now.
type onlooker struct {
	mu      sync.Mutex
	waiting map[int]<-chan struct{} // by process: a look that has not come back; closed when it has
}

// looks knows the looks of this process that have not come back.
var looks = onlooker{waiting: map[int]<-chan struct{}{}}

// filter returns the processes for which keep is true. One that does not let itself be looked at is left out,
// and is among those that stuck gives until the look has come back.
func (o *onlooker) filter(pids []int, keep func(pid int) bool) []int {
	var kept, late []int
	for left := slices.DeleteFunc(slices.Clone(pids), o.stuckNow); len(left) > 0; {
		n, gaveUp := o.walk(left, keep, &kept)
		if gaveUp {
			late = append(late, left[n-1])
		}
		left = left[n:]
	}
	for _, pid := range late {
		if !o.stuckNow(pid) && keep(pid) { // it was only slow
			kept = append(kept, pid)
		}
	}
	slices.Sort(kept)
	return kept
}

// walk looks at processes until one does not let it. It returns how many are dealt with, and whether it gave up on the last of them.
func (o *onlooker) walk(pids []int, keep func(pid int) bool, kept *[]int) (n int, gaveUp bool) {
	answers := make([]bool, len(pids))
	l := lookAt(len(pids), func(i int) { answers[i] = keep(pids[i]) })
	last := l.wait()
	for i := range last {
		if answers[i] {
			*kept = append(*kept, pids[i])
		}
	}
	if last == len(pids) {
		return len(pids), false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting[pids[last]] = l.done
	return last + 1, true
}

// look has one process looked at, and gives up when that takes long: it reports whether the look has come back.
func (o *onlooker) look(pid int, at func()) bool {
	if o.stuckNow(pid) {
		return false
	}
	l := lookAt(1, func(int) { at() })
	if l.wait() == 1 {
		return true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting[pid] = l.done
	return false
}

// stuckNow tells whether a look at the process has not come back yet.
func (o *onlooker) stuckNow(pid int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	done, ok := o.waiting[pid]
	if !ok {
		return false
	}
	select {
	case <-done:
		delete(o.waiting, pid)
		return false
	default:
		return true
	}
}

// stuck lists the processes that cannot be looked at.
func (o *onlooker) stuck() []int {
	o.mu.Lock()
	var pids []int
	for pid := range o.waiting {
		pids = append(pids, pid)
	}
	o.mu.Unlock()
	slices.Sort(pids)
	return slices.DeleteFunc(pids, func(pid int) bool { return !o.stuckNow(pid) })
}

// Swappable lists the target's processes, as Processes does, for a swap that must not miss one. It fails if one cannot be looked at.
func (t Target) Swappable() ([]int, error) {
	pids, err := t.Processes()
	if err != nil {
		return nil, err
	}
	for _, pid := range looks.stuck() {
		if t.mayHave(pid, pids) {
			return nil, errWithinExec(pid)
		}
	}
	return pids, nil
}

// comesBack is for a filter that only leaves out what cannot be looked at.
func comesBack(pid int) bool {
	_, _ = readStat(pid) // one that has ended comes back too
	return true
}

// closedExec is for a filter: it comes back when the process is within no execve that closes files. Some kernels let others look meanwhile: they
// close the files before they take exec_update_lock (seen on Linux 6.12.117). But they have cred_guard_mutex, and who traces the process waits for it
// (prepare_bprm_creds of fs/exec.c, ptrace_attach of kernel/ptrace.c) in a sleep that no signal ends for good.
func closedExec(pid int) bool {
	const longest = 100 * time.Millisecond
	for pause := time.Millisecond; closesInExec(pid); pause = min(2*pause, longest) {
		wait := unix.NsecToTimespec(int64(pause))
		_ = unix.Nanosleep(&wait, nil) // not time.Sleep: this is a look that waits
	}
	return true
}

// closesInExec reads where in the kernel the process's first thread is, which is the one that calls execve as soon as files are closed, if it is in that
// call. Where the kernel does not tell, it is not.
func closesInExec(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid)) // proc_pid_syscall(5)
	word, _, _ := strings.Cut(string(b), " ")
	if nr, nerr := strconv.Atoi(word); err != nil || nerr != nil || nr != unix.SYS_EXECVE && nr != unix.SYS_EXECVEAT {
		return false
	}
	stack, err := os.ReadFile(fmt.Sprintf("/proc/%d/stack", pid))
	return err == nil && bytes.Contains(stack, []byte("do_close_on_exec"))
}

// ErrWithinExec says that a process cannot be looked at, see lookPatience. It has not ended.
var ErrWithinExec = errors.New("is within an execve(2) that waits to close a file, on a file system that does not answer; try again when that is over")

func errWithinExec(pid int) error {
	return fmt.Errorf("process %d (%s) %w", pid, CommOf(pid), ErrWithinExec)
}

// mayHave tells whether a process that cannot be looked at may be the target's: by its parents, and by its
// cgroup, unless that is the one of this process. Neither of these files waits for an execve.
func (t Target) mayHave(pid int, pids []int) bool {
	if descendsFrom(pid, slices.Concat(pids, []int{t.PID})) {
		return true
	}
	own, of, its := cgroupOf(os.Getpid()), cgroupOf(t.PID), cgroupOf(pid)
	return !t.Tree && its != "" && its == of && its != own
}

// descendsFrom tells whether a process is one of those, or comes from one. It does not wait for an execve either.
func descendsFrom(pid int, pids []int) bool {
	for p, ok := pid, true; ok && p > 1; p, ok = parentOf(p) {
		if slices.Contains(pids, p) {
			return true
		}
	}
	return false
}

func cgroupOf(pid int) string { return cgroupOfThread(pid, strconv.Itoa(pid)) }

func cgroupOfThread(pid int, thread string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/cgroup", pid, thread))
	if err != nil {
		return "" // it has ended
	}
	return string(b)
}

// CommOf gives the name of a process, also of one that is within an execve.
func CommOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "has ended"
	}
	return strings.TrimSpace(string(b))
}

// parentOf reads a process's parent from its status file.
func parentOf(pid int) (int, bool) {
	ppid, err := strconv.Atoi(statusOf(pid, "PPid"))
	return ppid, err == nil
}

// statusOf reads a field of a process's status file (proc_pid_status(5)), which does not wait for an execve; empty: it has ended.
func statusOf(pid int, field string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	return fieldOf(string(b), field)
}

func fieldOf(status, field string) string {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
