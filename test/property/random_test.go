package property

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/test/programs"
	"github.com/faultgraft/faultgraft/tracer"
)

// aSeed is FAULTGRAFT_PROPERTY_SEED, or a new one each time. It sets the target's draws
// and the test's; how they meet in time it does not.
func aSeed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano() % 1e9)
	if s := os.Getenv("FAULTGRAFT_PROPERTY_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("FAULTGRAFT_PROPERTY_SEED=%d", seed)
	return seed
}

// randomPrograms are the targets. That in C has the same threads in several processes,
// that in Go goroutines, which the runtime moves between its threads, and the poller.
func randomPrograms(t testing.TB) map[string]string {
	return map[string]string{"C": programs.C(t, "random"), "Go": programs.MustGo(t, "test/target/random")}
}

// All that random programs have open is swapped between two mounts, thousands of times a
// minute, and stays what it was. flock and OFD locks are left out: they belong to the
// description that a swap replaces, and to keep them is the caller's part.
func TestRandomBetweenMounts(t *testing.T) {
	for name, words := range randomPrograms(t) {
		t.Run(name, func(t *testing.T) {
			seed := aSeed(t)
			r := rand.New(rand.NewPCG(seed, 1))
			before := descriptors(t)
			m := newTwoMounts(t)
			p := start(t, &syscall.SysProcAttr{}, words, m.dirs[0], fmt.Sprint(seed), "no-description-locks")
			m.pid = p.pid()
			for again, at := runFor(t, 8*time.Second), 0; again(); {
				at = 1 - at
				m.swapUnlessInFlight(at)
				if r.IntN(20) == 0 {
					undisturbed(t, m.processes)
					p.ask("check")
				}
				time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond)
			}
			answer := p.quit()
			t.Logf("%d swaps of %d objects, %s, target: %s", m.swaps, m.objects, spread(m.pauses), answer)
			if n := descriptors(t) - 2; n > before { // the two roots
				t.Errorf("%d descriptors, %d before", n, before)
			}
		})
	}
}

// swapUnlessInFlight swaps, as soon as no descriptor is in the queue of a socket: that
// is a limit, and the swap is refused.
func (m *twoMounts) swapUnlessInFlight(to int) {
	m.t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		r, err := tracer.Swap(context.Background(), m.options(to))
		if err == nil {
			m.objects += len(r.Swapped)
			m.swaps++
			m.pauses = append(m.pauses, r.Pause)
			break
		}
		if !strings.Contains(err.Error(), "in flight") || errors.Is(err, tracer.ErrPartly) || time.Now().After(end) {
			m.t.Fatalf("swap %d: %v", m.swaps, err)
		}
	}
	m.none(1-to, 5*time.Second)
}
