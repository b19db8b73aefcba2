package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A server that dies is replaced, but not for ever: after too many deaths the last one
// takes the layers off. One that crashes by itself does so for what it does, a request
// that is sent again to each that follows, say. One that is killed has done nothing:
// whoever kills it may do so every second.
const (
	// maxCrashes is how often servers may crash one after the other, none of which has served for deathSpan.
	maxCrashes = 3
	// maxKills is how many may be killed within deathSpan: more comes of a lack of memory that kills each as it starts.
	maxKills  = 30
	deathSpan = 10 * time.Second
)

// deaths are those of the servers of one keeper.
type deaths struct {
	kills   []time.Time // within deathSpan
	crashes int         // since one has served for deathSpan
}

// count takes in the death of a server that had served for so long, and why it died. The error says that there were too many.
func (d *deaths) count(now time.Time, served time.Duration, why error) error {
	if served >= deathSpan {
		d.crashes = 0
	}
	if crashed(why) {
		if d.crashes++; d.crashes > maxCrashes {
			return fmt.Errorf("%d servers have crashed one after the other, none of the last %d has served for %v", d.crashes, maxCrashes, deathSpan)
		}
		return nil
	}
	d.kills = append(d.kills, now)
	for now.Sub(d.kills[0]) > deathSpan {
		d.kills = d.kills[1:]
	}
	if n := len(d.kills); n > maxKills {
		return fmt.Errorf("%d servers were killed within %v", n, deathSpan)
	}
	return nil
}

// crashed tells a server that ended by itself from one that was told to end or killed, by what cmd.Wait said of it.
func crashed(why error) bool {
	var exit *exec.ExitError
	if !errors.As(why, &exit) {
		return false // not a child of this process: nobody knows
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return true
	}
	switch status.Signal() {
	case syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP:
		return false
	}
	return true
}

// bury counts the death of a server. When there were too many, one more is to follow, of which last says why: it
// has no rules, and its layers come off while it serves. If that one dies as well, nobody is to follow.
func (k *keeper) bury(s *serverClient) (last, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var served time.Duration
	if !s.since.IsZero() {
		served = time.Since(s.since)
	}
	if served >= deathSpan {
		k.last = nil
	}
	many := k.deaths.count(time.Now(), served, s.why)
	if many == nil {
		return k.last, nil
	}
	if k.last != nil {
		return k.last, many
	}
	k.last = many
	for _, h := range k.grafts {
		if h.State == StateActive {
			h.State, h.Reason = StateReverting, reasonDying
		}
	}
	return k.last, nil
}

// reasonDying is that of grafts that come off because of it.
const reasonDying = "servers die again and again"

// outOfMemory is how many processes the kernel has killed for lack of memory, of the machine or of a cgroup (oom_kill of /proc/vmstat).
func outOfMemory() uint64 {
	b, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if n, is := strings.CutPrefix(line, "oom_kill "); is {
			killed, _ := strconv.ParseUint(strings.TrimSpace(n), 10, 64)
			return killed
		}
	}
	return 0
}

// obituary says how a server died.
func (s *serverClient) obituary() string {
	if s.why == nil {
		return "it ended by itself"
	}
	why := s.why.Error()
	var exit *exec.ExitError
	if errors.As(s.why, &exit) && exit.ExitCode() == 2 { // Go's, after a panic and after a signal such as SIGSEGV
		why += ": it crashed, keeper.log has the stack"
	}
	if s.starved > 0 {
		why += fmt.Sprintf("; while it was there, the kernel has killed %d processes for lack of memory", s.starved)
	}
	return why
}
