package fusefs

import (
	"os"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/faultgraft/faultgraft/policy"
)

// caller is who made a request. What filters look at is read from /proc when
// the first rule asks for it: the caller waits in the kernel for its answer, so
// that it is as it was when it called. Nothing is kept beyond the request,
// because execve(2) and prctl(2) change it.
type caller struct {
	header         *fuse.InHeader
	info           policy.CallerInfo
	comm, exe, pid bool // what has been read
}

// matches reports whether a rule's filters are about the caller.
func (c *caller) matches(f *policy.Caller) bool {
	if f.Empty() {
		return true
	}
	if c.header.Pid == 0 { // the kernel's own, or a process that the server's PID namespace does not show
		c.info.Kernel = true
		return f.Match(c.info)
	}
	c.info.UID = c.header.Uid
	if f.NeedsComm() && !c.comm {
		c.comm = true
		b, _ := os.ReadFile(procOf(c.header.Pid, "comm")) // gone: a killed caller, for whom nothing matters any more
		c.info.Comm = strings.TrimSuffix(string(b), "\n")
	}
	if f.NeedsExe() && !c.exe {
		c.exe = true
		c.info.Exe = exeOf(c.header.Pid)
	}
	if f.NeedsPID() && !c.pid {
		c.pid = true
		c.info.PID = innermostPID(c.header.Pid)
	}
	return f.Match(c.info)
}

func procOf(tid uint32, name string) string {
	return "/proc/" + strconv.FormatUint(uint64(tid), 10) + "/" + name
}

// exeOf is the path of a thread's executable as the thread's own root shows it.
// The kernel prints it from the root of the mount namespace, where a container
// that was pivoted into its root has the same; one that was only chrooted has
// its root in front.
func exeOf(tid uint32) string {
	exe, err := os.Readlink(procOf(tid, "exe"))
	if err != nil {
		return "" // a kernel thread, or gone
	}
	exe = strings.TrimSuffix(exe, " (deleted)") // replaced since by an upgrade: still what it runs
	root, err := os.Readlink(procOf(tid, "root"))
	if err != nil || root == "/" {
		return exe
	}
	if rest, ok := strings.CutPrefix(exe, root); ok && strings.HasPrefix(rest, "/") {
		return rest
	}
	return exe
}

// innermostPID is the id that a thread's process has in its own PID namespace,
// 0 if the thread is gone (NStgid of proc(5), /proc/pid/status).
func innermostPID(tid uint32) uint32 {
	ids := statusLine(tid, "NStgid:")
	if len(ids) == 0 {
		return 0
	}
	n, err := strconv.ParseUint(ids[len(ids)-1], 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}
