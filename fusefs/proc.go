package fusefs

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// systemCall is what a thread is waiting in.
type systemCall struct {
	nr   int
	args [6]uint64
}

// callOf tells the system call of a caller, which sleeps in it until its request
// is answered (proc(5), /proc/pid/syscall). Requests do not always say what they
// are for. It reports false for a thread that is gone. A 32-bit program's
// numbers are those of its own table.
func callOf(tid uint32) (c systemCall, ok bool) {
	if tid == 0 {
		return c, false
	}
	// "running" until it has gone to sleep. On a busy machine it may have to wait for a
	// processor before: then others do.
	for start, tries := time.Now(), 0; tries < 100 || time.Since(start) < callPatience; tries++ {
		if tries >= 100 {
			time.Sleep(100 * time.Microsecond)
		}
		b, err := os.ReadFile(procOf(tid, "syscall"))
		if err != nil {
			return c, false
		}
		words := strings.Fields(string(b))
		if len(words) > 0 && words[0] == "running" {
			continue
		}
		return parseCall(words)
	}
	return c, false
}

// callPatience is how long a thread whose request is there may take to go to sleep.
const callPatience = 2 * time.Second

func parseCall(words []string) (c systemCall, ok bool) {
	if len(words) < 1+len(c.args) {
		return c, false
	}
	nr, err := strconv.Atoi(words[0])
	if err != nil || nr < 0 {
		return c, false
	}
	c.nr = nr
	for i := range c.args {
		if c.args[i], err = strconv.ParseUint(words[1+i], 0, 64); err != nil {
			return c, false
		}
	}
	return c, true
}

func (c systemCall) among(list []int) bool { return slices.Contains(list, c.nr) }

// withinExec reports whether a thread is within an execve(2) that closes its close-on-exec files. Until that is done the kernel lets nobody
// look into most of /proc/TID: the look would wait for the answer to the very FLUSH that asks for it (exec_update_lock; begin_new_exec and
// do_close_on_exec of fs/exec.c). Its memory, which can be looked at, is new then, and has no program yet (proc_pid_statm(5)). A thread that
// exits has no memory.
func withinExec(tid uint32) bool {
	b, err := os.ReadFile(procOf(tid, "statm"))
	return err == nil && withoutProgram(string(b))
}

func withoutProgram(statm string) bool {
	f := strings.Fields(statm)
	const size, text = 0, 3
	return len(f) > text && f[size] != "0" && f[text] == "0"
}

// lacks reports whether a thread is without a capability. One that is gone has none.
func lacks(tid uint32, capability uint) bool {
	return lacking(statusLine(tid, "CapEff:"), capability)
}

func lacking(effective []string, capability uint) bool {
	for _, w := range effective {
		if set, err := strconv.ParseUint(w, 16, 64); err == nil {
			return set&(1<<capability) == 0
		}
	}
	return true
}

// groupsOf reads the supplementary groups of a thread. A thread that is gone has none.
func groupsOf(tid uint32) []uint32 { return parseGroups(statusLine(tid, "Groups:")) }

func parseGroups(words []string) []uint32 {
	out := []uint32{}
	for _, w := range words {
		if g, err := strconv.ParseUint(w, 10, 32); err == nil {
			out = append(out, uint32(g))
		}
	}
	return out
}

// statusLine gives the words after a key in /proc/TID/status.
func statusLine(tid uint32, key string) []string {
	b, err := os.ReadFile(procOf(tid, "status"))
	if err != nil {
		return nil
	}
	return lineOf(string(b), key)
}

func lineOf(status, key string) []string {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			return strings.Fields(rest)
		}
	}
	return nil
}

// member reports whether a caller belongs to a group.
func member(tid, fsgid, gid uint32) bool {
	return fsgid == gid || slices.Contains(groupsOf(tid), gid)
}
