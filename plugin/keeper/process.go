package keeper

import (
	"errors"
	"fmt"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/holder"
	"golang.org/x/sys/unix"
)

// process is another process, held by a pidfd: who gets its number when it has ended is not meant.
type process struct{ pid, fd int }

// openProcess takes hold of a process of which there was the number only. is looks whether who has the number
// is the one that is meant. Nil: that one has ended.
func openProcess(pid int, is func() bool) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil // for the last two (Linux 6.15 has ENOENT) the id was given to a thread of another
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p := &process{pid, fd}
	if !is() || p.ended() { // where it lives still, is has looked at this one
		p.close()
		return nil, nil
	}
	return p, nil
}

// openJob takes hold of a process that has a job in faultgraft, see graft.Job.
func openJob(pid int, job string) (*process, error) {
	return openProcess(pid, func() bool { its, _ := graft.Job(pid); return its == job })
}

func (p *process) ended() bool {
	err := unix.PidfdSendSignal(p.fd, 0, nil, 0)
	return errors.Is(err, unix.ESRCH)
}

// kill ends it, and waits until it is gone with all its threads, and so with all their system calls. It reports whether that came in time.
func (p *process) kill(patience time.Duration) (bool, error) {
	ended, err := holder.Kill(p.fd, patience)
	if err != nil {
		err = fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	return ended, err
}

func (p *process) close() { _ = unix.Close(p.fd) }
