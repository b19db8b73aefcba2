package keeper

import (
	"errors"
	"os/exec"
	"testing"
	"time"
)

// end runs a shell that ends in that way.
func end(t *testing.T, how string) error {
	t.Helper()
	return exec.Command("/bin/sh", "-c", how).Run()
}

// Servers that are killed are replaced as long as they are not killed as they start; one that crashes again and again is not, but one
// that has served for a while in between is.
func TestDeaths(t *testing.T) {
	killed, crashed, failed := end(t, "kill -9 $$"), end(t, "kill -SEGV $$"), end(t, "exit 2")
	now := time.Now()
	many := func(n int, every, served time.Duration, why ...error) error {
		var d deaths
		for i := range n {
			if err := d.count(now.Add(time.Duration(i)*every), served, why[i%len(why)]); err != nil {
				return err
			}
		}
		return nil
	}
	for _, c := range []struct {
		name          string
		n             int
		every, served time.Duration
		why           []error
		many          bool
	}{
		{"killed every half second", 1000, time.Second / 2, time.Second / 2, []error{killed}, false},
		{"killed at its start", maxUnserved, 10 * time.Millisecond, 0, []error{killed}, false},
		{"killed at each start", maxUnserved + 1, 10 * time.Millisecond, 0, []error{killed}, true},
		{"killed at each start, on a slow machine", maxUnserved + 1, time.Second, 0, []error{killed}, true},
		{"killed at each start, on a very slow machine", 20, 10 * time.Second, 0, []error{killed}, true},
		{"killed at each start, for two minutes", 13, 10 * time.Second, 0, []error{killed}, false},
		{"killed as soon as it has served", 1000, time.Second, serveSpan, []error{killed}, false},
		{"crashed a few times", maxCrashes, 0, 0, []error{crashed, failed}, false},
		{"crashes each time, on a slow machine", maxCrashes + 1, time.Minute, 0, []error{crashed}, true},
		{"panics each time", maxCrashes + 1, 0, time.Second, []error{failed}, true},
		{"crashes after it has served for a while", 1000, deathSpan, deathSpan, []error{crashed}, false},
		{"crashes between kills", 2 * maxCrashes, time.Second, time.Second, []error{killed, crashed}, false},
		{"crashes too often between kills", 2 + 2*maxCrashes, time.Second, time.Second, []error{killed, crashed}, true},
		{"no child of ours", maxUnserved, 0, 0, []error{errors.New("killed")}, false},
	} {
		if err := many(c.n, c.every, c.served, c.why...); (err != nil) != c.many {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if got := (&serverClient{why: killed, starved: 2}).obituary(); got != "signal: killed; while it was there, the kernel has killed 2 processes for lack of memory" {
		t.Error(got)
	}
}
