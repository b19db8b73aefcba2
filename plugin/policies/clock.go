package policies

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the time that a Store goes by.
type Clock struct {
	// Now is the wall clock, by which schedules and the ages of containers go.
	Now func() time.Time
	// Boot is CLOCK_BOOTTIME: the time since the machine was started, with that in
	// which it was suspended (clock_gettime(2)). It bounds faults: nobody can set it.
	Boot func() time.Duration
	// BootID tells one start of the machine from another.
	BootID string
}

// SystemClock is the machine's.
func SystemClock() (Clock, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id") // random(4)
	if err != nil {
		return Clock{}, fmt.Errorf("tell this start of the machine from others: %w", err)
	}
	if _, err := bootTime(); err != nil {
		return Clock{}, err
	}
	return Clock{
		Now: time.Now,
		Boot: func() time.Duration {
			t, _ := bootTime() // it worked a moment ago, and needs nothing
			return t
		},
		BootID: strings.TrimSpace(string(id)),
	}, nil
}

func bootTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("CLOCK_BOOTTIME: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// stopwatch measures a run over the end of the agent, and of the machine. The
// zero value is at zero and stands.
type stopwatch struct {
	// Before is what it showed when it was started last; nanoseconds in JSON.
	Before time.Duration `json:"before,omitempty"`
	// Running: it goes on from Start (wall clock) and Boot (CLOCK_BOOTTIME of BootID).
	Running bool          `json:"running,omitempty"`
	Start   time.Time     `json:"start,omitzero"`
	Boot    time.Duration `json:"boot,omitempty"`
	BootID  string        `json:"bootID,omitempty"`
}

func (w *stopwatch) start(c *Clock) {
	if !w.Running {
		w.Running, w.Start, w.Boot, w.BootID = true, c.Now().UTC(), c.Boot(), c.BootID
	}
}

func (w *stopwatch) stop(c *Clock) {
	*w = stopwatch{Before: w.age(c)}
}

// age is what the stopwatch shows.
func (w *stopwatch) age(c *Clock) time.Duration {
	if !w.Running {
		return w.Before
	}
	return w.Before + c.Boot() - w.Boot
}

// adopt continues a stopwatch that was read from a file that was written at
// written. After a restart of the machine only the wall clock is left; false:
// that was set back meanwhile, or the file is wrong: nobody knows how long it has been.
func (w *stopwatch) adopt(c *Clock, written time.Time) bool {
	if !w.Running {
		return true
	}
	if w.BootID == c.BootID {
		return w.Boot <= c.Boot()
	}
	now := c.Now()
	if now.Before(w.Start) || now.Before(written) {
		return false
	}
	*w = stopwatch{Before: w.Before + now.Sub(w.Start)}
	w.start(c)
	return true
}
