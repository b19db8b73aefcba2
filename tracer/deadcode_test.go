package tracer_test

import (
	"os"
	"syscall"
	"testing"
)

// A tracer that was killed, and the next one right after it, which finds the thread in the
// code of the first. In a program that is linked statically there is no room for a second.
func TestTracerAfterAKilledOne(t *testing.T) {
	at := newPlace(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, "target-static", "files", at.a, "20", "3")
	for point := 5; point <= 9; point++ { // inject, stage, commit, check, release
		for _, delay := range []int{0, 100, 400} {
			cmd := tracerThatDies(self, at, p.pid(), point, delay)
			_ = cmd.Run()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
				t.Logf("point %d, delay %d: %v", point, delay, cmd.ProcessState)
			}
			// what of the files has been exchanged is not known here
			s := newSwapper(t, at, p.pid())
			swap(t, s.forward())
			if old, now := onMount(t, at.mntA, p.pid()), onMount(t, at.mntB, p.pid()); old != 0 || now != 21 {
				t.Fatalf("point %d, delay %d: %d objects on the old mount, %d on the new", point, delay, old, now)
			}
			p.check()
			back := newSwapper(t, &place{a: at.b, b: at.a, mntA: at.mntB, mntB: at.mntA}, p.pid())
			swap(t, back.forward()) // opens by name, as after a death there is nothing to give back
			p.check()
			back.drop()
			s.drop()
		}
	}
	p.quit()
}
