package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
)

// startPatience is how long a process may take to start, on a machine that is busy.
const startPatience = 10 * time.Second

// startPatienceOfTest shortens it for what a keeper, server or holder starts.
const startPatienceOfTest = "FAULTGRAFT_TEST_START_PATIENCE"

// errNotStarted: what is wrong, for a person. The kernel closes the copies of our close-on-exec files within execve(2) (do_close_on_exec,
// fs/exec.c), and some may be originals of the target's files. A close of a file of a FUSE file system waits for its server, whatever
// signal comes (fuse_flush of fs/fuse/file.c sets args.force; request_wait_answer of fs/fuse/dev.c; Linux 6.18).
var errNotStarted = errors.New("no process can be started now, because a file system that the target has files of does not answer when a file is closed. It is done when that answers")

// starting has whoever starts a process, also one that was given up and has not come out of its execve yet: Go starts one at a time.
var starting = make(chan struct{}, 1)

// overdue: it was given up.
var overdue atomic.Bool

// awaitExec waits until a child has come out of its execve, or has ended. Go takes it for started when its end of a pipe is closed, which happens in
// the middle: files are closed in the order of their numbers, and the one that hangs may have a higher one. The new program's arguments are
// there after that (begin_new_exec, then create_elf_tables in load_elf_binary of fs/binfmt_elf.c; Linux 6.18).
func awaitExec(pid int) {
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || len(b) > 0 {
			return
		}
		// Who looks at the state of one that hangs there is told so; one that has ended has no arguments either.
		if stat, err := graft.ReadStat(pid); !errors.Is(err, graft.ErrWithinExec) && (err != nil || stat.Ended()) {
			return
		}
		time.Sleep(wait)
	}
}

// startProcess is cmd.Start for a process that may have copies of the target's files. One that comes late is killed. While that has not come out
// of its execve nobody waits for it once more: the waits of many callers, one after the other, would be as long as there are callers.
func startProcess(cmd *exec.Cmd) error {
	patience := startPatience
	if d, err := time.ParseDuration(os.Getenv(startPatienceOfTest)); err == nil {
		patience = d
	}
	late := time.After(patience)
	if overdue.Load() {
		return errNotStarted
	}
	select {
	case starting <- struct{}{}:
	case <-late:
		return errNotStarted
	}
	started := make(chan error, 1)
	go func() {
		err := cmd.Start()
		if err == nil {
			awaitExec(cmd.Process.Pid)
		}
		started <- err
	}()
	select {
	case err := <-started:
		<-starting
		return err
	case <-late:
	}
	overdue.Store(true)
	go func() {
		if <-started == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed
		}
		overdue.Store(false)
		<-starting
	}()
	return errNotStarted
}
