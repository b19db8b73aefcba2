package tracer_test

import (
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
)

// The code in a thread gives it back after 3 s without a word. Where others have their turn for
// longer, it is told that its own will come.
func TestCodeWaitsForItsTurn(t *testing.T) {
	at := newPlace(t)
	var pids []int
	for range 4 {
		pids = append(pids, start(t, "target", "files", at.a, "3", "3").pid())
	}
	s := newSwapper(t, at, pids[0])
	o := s.forward()
	o.Processes = func() ([]int, error) { return pids, nil }
	o.Together, o.Deadline = true, time.Minute
	o.Step = func(step string) error {
		if step == tracer.StepCommit {
			time.Sleep(1500 * time.Millisecond) // the last one waits for 6 s
		}
		return nil
	}
	if r := swap(t, o); len(r.Processes) != len(pids) {
		t.Errorf("%d processes", len(r.Processes))
	}
}
