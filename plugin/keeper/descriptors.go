package keeper

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// raiseDescriptorLimit asks for as many descriptors as the kernel gives a
// process (fs.nr_open) and else for the hard limit: one is needed for each open
// file and each cached inode of a target. Failing leaves the limit as it is;
// what does not fit is reported where it happens.
func raiseDescriptorLimit() {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return
	}
	const want = 1 << 20
	if lim.Max < want && unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: want}) == nil {
		return
	}
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: lim.Max, Max: lim.Max})
}

// crowd is how many descriptors a process has, and may have.
type crowd struct {
	Open  uint64 `json:"open"`
	Limit uint64 `json:"limit"`
}

func (c crowd) String() string {
	return fmt.Sprintf("the server has %d descriptors of the %d that it may have: each file that the target knows is one, and one more while it is open. Beyond that the target gets EMFILE, whatever its own limit is. "+
		"Give faultgraft CAP_SYS_RESOURCE, or who starts it a higher limit (LimitNOFILE of its unit, ulimit -Hn), and graft again", c.Open, c.Limit)
}

const (
	crowdLook = time.Second // how often it is looked
	// It is told of from four fifths on, and again only when it has been below three.
	crowdFrom, crowdBelow, crowdOf = 4, 3, 5
)

// watchCrowd tells of each time when a process has next to no descriptors left, until stop is closed.
func watchCrowd(stop <-chan struct{}, tell func(crowd)) {
	tick := time.NewTicker(crowdLook)
	defer tick.Stop()
	for told := false; ; {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		var fds unix.Stat_t // st_size is their number (Linux 6.2, proc_fd_getattr of fs/proc/fd.c), 0 before
		var limit unix.Rlimit
		if unix.Stat("/proc/self/fd", &fds) != nil || unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
			continue
		}
		switch c := (crowd{uint64(fds.Size), limit.Cur}); {
		case c.Open*crowdOf < c.Limit*crowdBelow:
			told = false
		case !told && c.Open*crowdOf >= c.Limit*crowdFrom:
			told = true
			tell(c)
		}
	}
}

func errnoName(e syscall.Errno) string {
	if n := unix.ErrnoName(e); n != "" {
		return n
	}
	return fmt.Sprintf("errno %d", int(e))
}
