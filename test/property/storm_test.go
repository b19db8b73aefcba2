package property

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/test/programs"
)

// runFor is how long a test goes on with something that it could do for ever:
// at least once, and as long as FAULTGRAFT_PROPERTY_TIME says, a few seconds without it.
func runFor(t testing.TB, usual time.Duration) (again func() bool) {
	t.Helper()
	if s := os.Getenv("FAULTGRAFT_PROPERTY_TIME"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		usual = d
	}
	end, first := time.Now().Add(usual), true
	return func() bool {
		again := first || time.Now().Before(end)
		first = false
		return again
	}
}

// G19: storms of execve, fork, vfork, clone and threads, while files are swapped to and fro.
// None of the processes that there are, or come, is left with a file on the old mount.
func TestStormsBetweenMounts(t *testing.T) {
	for _, kind := range []string{"exec", "clone"} {
		t.Run(kind, func(t *testing.T) {
			before := descriptors(t)
			m := newTwoMounts(t)
			p := start(t, &syscall.SysProcAttr{}, programs.C(t, "storms"), kind, m.dirs[0], "3")
			m.pid = p.pid()
			for again := runFor(t, 4*time.Second); again(); {
				m.swap(1, 0)
				undisturbed(t, m.processes)
				m.swap(0, 0)
				undisturbed(t, m.processes)
				p.ask("check")
			}
			answer := p.quit()
			t.Logf("%d swaps of %d objects, %s, target: %s", m.swaps, m.objects, spread(m.pauses), answer)
			if n := descriptors(t) - 2; n > before { // the two roots
				t.Errorf("%d descriptors, %d before", n, before)
			}
		})
	}
}

// spread describes durations.
func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "no pauses"
	}
	s := append([]time.Duration(nil), d...)
	slices.Sort(s)
	at := func(q float64) time.Duration { return s[int(q*float64(len(s)-1))].Round(10 * time.Microsecond) }
	return fmt.Sprintf("pauses %v median, %v p99, %v most", at(0.5), at(0.99), at(1))
}
