package keeper

import (
	"testing"
	"time"
)

// Of swaps there are so many at once and no more; one that waits has its turn when another gives its back, and goes on without one rather than for ever.
func TestSwapsTakeTurns(t *testing.T) {
	all := stateDir(t.TempDir()).turns()
	all.most, all.patience = 3, time.Hour
	var back []func()
	for range all.most {
		back = append(back, all.take())
	}
	next := make(chan func())
	go func() { next <- all.take() }()
	select {
	case <-next:
		t.Fatal("there is one more at once")
	case <-time.After(200 * time.Millisecond):
	}
	hurried := all
	hurried.patience = 50 * time.Millisecond
	hurried.take()()
	back[1]()
	select {
	case back[1] = <-next:
	case <-time.After(10 * time.Second):
		t.Fatal("what was given back is not taken")
	}
	// A queue in which others have their turns is none that hangs, however long it is.
	long := all
	long.patience = 500 * time.Millisecond
	q, deadline := long.queue(), time.Now().Add(2*long.patience)
	for time.Now().Before(deadline) {
		if _, ok := q.try(); ok {
			t.Fatal("it has a turn")
		}
		back[1] = pass(all, back[1])
		time.Sleep(50 * time.Millisecond)
	}
	for _, b := range back {
		b()
	}
	for range all.most { // one that had none gave none back
		defer all.take()()
	}
	if (turns{"/proc/none/turns", 3, time.Hour}).take() == nil {
		t.Error("no place to note turns")
	}
}

// pass gives a turn back, and has the next one taken by somebody else.
func pass(all turns, back func()) func() {
	back()
	return all.take()
}
