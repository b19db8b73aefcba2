package keeper

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/fusefs"
	"golang.org/x/sys/unix"
)

// standInWait is how long is waited for what lies below to say what the dead server had done. Beyond that, a call that it had
// done and not answered may be done twice; with a file system that hangs, it was hardly done.
const standInWait = 5 * time.Second

// standIn has somebody stand in for the dead server of layers, before anybody takes them off.
func (k *keeper) standIn(layers []*held) {
	var waits sync.WaitGroup
	for _, h := range layers {
		waits.Add(1)
		k.standInFor(h, waits.Done)
	}
	settled := make(chan struct{})
	go func() {
		waits.Wait()
		close(settled)
	}()
	select {
	case <-settled:
	case <-time.After(standInWait):
		k.o.Logger.Warn("what lies under the layers of the dead server does not answer: a call that it had done may be done twice")
	}
}

// standInFor has somebody stand in for the server of one layer, if that can be. settled is called when what that one had in work is answered, as far as it is.
func (k *keeper) standInFor(h *held, settled func()) {
	k.takeRemains(h)
	k.mu.Lock()
	defer k.mu.Unlock()
	if h.device < 0 {
		settled()
		return
	}
	// Its own duplicates: the graft may be forgotten while it reads.
	fds, err := dupAll(h.device, h.backing)
	if err != nil {
		k.o.Logger.Error("stand in for the dead server", "graft", h.ID, "err", err)
		settled()
		return
	}
	unanswered := h.remains.unanswered
	h.remains.unanswered = nil
	h.stoodIn = true
	go (&fusefs.StandIn{
		Device: fds[0], Backing: fds[1], Unanswered: unanswered, NoResend: os.Getenv("FAULTGRAFT_TEST_NO_RESEND") != "", Logger: k.o.Logger,
		Swapper: k.isSwapper, Description: func(handle uint64) (int, bool) { return k.duplicate(h, handle) },
	}).Run(settled)
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
	fd, ok := h.description(handle)
	if !ok {
		return -1, false
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return dup, err == nil
}
