package property

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// What random programs have open comes onto layers, under other rules there, and goes
// back. No rule ever fires: everything stays what it was.
func TestRandomOnLayers(t *testing.T) {
	for name, words := range randomPrograms(t) {
		t.Run(name, func(t *testing.T) { randomOnLayers(t, words) })
	}
}

func randomOnLayers(t *testing.T, program string) {
	seed := aSeed(t)
	r := rand.New(rand.NewPCG(seed, 2))
	words := append(append([]string{}, inNamespace...), program, "DATA", fmt.Sprint(seed))
	g := newGrafted(t, &syscall.SysProcAttr{}, words...)
	h := &history{t: t}
	rule := func() string {
		rules := []string{fmt.Sprintf(elsewhere, g.data), never, "io latency=1s op=open+getattr+rename p=0 ttl=10m"}
		return rules[r.IntN(len(rules))]
	}
	nap := func(ms int) { time.Sleep(time.Duration(r.IntN(ms)) * time.Millisecond) }
	updates := 0
	for again := runFor(t, 12*time.Second); again(); {
		var of keeper.Graft
		h.note("graft", func() *graft.Report { of = g.inject(rule()); return of.Report })
		g.p.ask("check")
		for range r.IntN(4) {
			nap(100)
			h.note("update", func() *graft.Report { return g.change("update", of.ID, "--deadline", "20s", rule()).Report })
			updates++
			g.p.ask("check")
		}
		nap(200)
		h.note("ungraft", func() *graft.Report { return g.recoverWhole(of).Report })
		g.p.ask("check")
	}
	answer := g.p.quit()
	t.Logf("%d grafts, %d updates, %s, target: %s", g.grafts, updates, spread(g.pauses), answer)
}

// recoverWhole ungrafts; a descriptor that was in flight meanwhile is closed by the target soon.
func (g *grafted) recoverWhole(of keeper.Graft) keeper.Graft {
	g.t.Helper()
	r := g.change("recover", of.ID)
	for _, s := range r.Report.Skipped { // what the Go runtime's poller has of a file on a layer goes with the layer's file
		if s.Object.Kind != tracer.Polled {
			g.t.Logf("ungraft: left %s: %s", &s.Object, s.Reason)
		}
	}
	gone(g.t, "ungraft", 5*time.Second, g.processes, g.onLayer)
	undisturbed(g.t, g.processes)
	return r
}

// history is what was done to a target last, told when its test fails: in seconds of the
// clock that the target's own log has.
type history struct {
	t     testing.TB
	lines []string
}

func monotonic() float64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // it has no errors but wrong arguments
	}
	return float64(ts.Sec) + float64(ts.Nsec)/1e9
}

func (h *history) note(what string, do func() *graft.Report) {
	h.t.Helper()
	if h.lines == nil {
		h.t.Cleanup(func() {
			if h.t.Failed() {
				h.t.Logf("what was done last:\n%s", strings.Join(h.lines[max(0, len(h.lines)-6):], "\n"))
			}
		})
	}
	h.lines = append(h.lines, fmt.Sprintf("%.6f %s …", monotonic(), what))
	r := do()
	line := fmt.Sprintf(" %.6f: prepared in %v, %d objects, %d skipped; stopped", monotonic(), r.Prepare, len(r.Swapped), len(r.Skipped))
	for _, p := range r.Stopped {
		line += fmt.Sprintf(" %d for %v,", p.PID, p.Pause)
	}
	line += " directories of"
	for _, o := range r.Swapped {
		if o.Object.Kind == tracer.Cwd {
			line += fmt.Sprintf(" %d", o.Object.PID)
		}
	}
	h.lines[len(h.lines)-1] += line
}
