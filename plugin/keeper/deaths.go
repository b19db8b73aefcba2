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
// whoever kills it may do so every second. While none comes to serve, the target waits: that ends.
const (
	// maxCrashes is how often servers may crash one after the other, none of which has served for deathSpan.
	maxCrashes = 3
	deathSpan  = 10 * time.Second
	// maxUnserved is how many may die one after the other, however they do, none of which has served for serveSpan: more comes
	// of a lack of memory that kills each as it starts. On a slow machine takeoverPatience comes first.
	maxUnserved = 30
	// serveSpan is how long a server answers requests that has done the target some good.
	serveSpan = 100 * time.Millisecond
)

// deaths are those of the servers of one keeper.
type deaths struct {
	crashes  int       // since one has served for deathSpan
	unserved int       // since one has served for serveSpan
	served   time.Time // when that one died
}

// count takes in the death of a server that had served for so long, and why it died. The error says that there were too many.
func (d *deaths) count(now time.Time, served time.Duration, why error) error {
	if served >= deathSpan {
		d.crashes = 0
	}
	if served >= serveSpan {
		d.unserved = 0
	} else {
		d.unserved++
	}
	if served >= serveSpan || d.served.IsZero() {
		d.served = now
	}
	if crashed(why) {
		d.crashes++
	}
	switch waits := now.Sub(d.served); {
	case d.crashes > maxCrashes:
		return fmt.Errorf("%d servers have crashed one after the other, none of the last %d has served for %v", d.crashes, maxCrashes, deathSpan)
	case d.unserved > maxUnserved, waits > takeoverPatience:
		return fmt.Errorf("%d servers have died one after the other within %v, none has served for %v", d.unserved, waits.Round(time.Second), serveSpan)
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
	if k.last != nil {
		return k.last, fmt.Errorf("%w; the one that followed to take the layers off has died too", k.last)
	}
	if many == nil {
		return nil, nil
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
