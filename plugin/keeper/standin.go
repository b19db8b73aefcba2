package keeper

import (
	"fmt"
	"os"

	"github.com/faultgraft/faultgraft/fusefs"
	"golang.org/x/sys/unix"
)

// standIn has somebody stand in for the server of one layer.
func (k *keeper) standIn(h *held) {
	k.takeRemains(h)
	k.mu.Lock()
	defer k.mu.Unlock()
	if h.device < 0 {
		return
	}
	// Its own duplicates: the graft may be forgotten while it reads.
	fds, err := dupAll(h.device, h.backing)
	if err != nil {
		k.o.Logger.Error("stand in for the dead server", "graft", h.ID, "err", err)
		return
	}
	unanswered := h.remains.unanswered
	h.remains.unanswered = nil
	h.stoodIn = true
	go (&fusefs.StandIn{
		Device: fds[0], Backing: fds[1], Unanswered: unanswered, NoResend: os.Getenv("FAULTGRAFT_TEST_NO_RESEND") != "", Logger: k.o.Logger,
		Swapper: k.isSwapper, Description: func(handle uint64) (int, bool) { return k.duplicate(h, handle) },
	}).Run()
}

// isSwapper tells whether a thread is one of the swapper's.
func (k *keeper) isSwapper(tid int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.swapper == nil {
		return false
	}
	_, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", k.swapper.Pid, tid))
	return err == nil
}

// duplicate gives what an open file of a layer stands for.
func (k *keeper) duplicate(h *held, handle uint64) (int, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fd, ok := h.descriptions()[handle]
	if !ok {
		return -1, false
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return dup, err == nil
}
