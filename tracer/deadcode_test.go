package tracer_test

import (
	"fmt"
	"os"
	"regexp"
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
			cmd := tracerThatDies(self, at, p.pid(), point, delay, 0)
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

// The code of a killed tracer gives its thread back, and a signal that was held back comes in that moment: its handler returns
// into the code, however late. Until then that place is used by no other swap.
func TestHandlerReturnsIntoDeadCode(t *testing.T) {
	at := newPlace(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, "target", "files", at.a, "20", "1")
	const stage = 6 // the code is in
	_ = tracerThatDies(self, at, p.pid(), stage, 0, syscall.SIGUSR1).Run()
	waitFor(t, func() bool { // it is in the handler
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
		return err == nil && tracerOf(t, p.pid()) == 0 && regexp.MustCompile(`SigBlk:\s*0+200\n`).Match(text)
	})
	for range 3 {
		s := newSwapper(t, at, p.pid())
		swap(t, s.forward())
		swap(t, s.backward())
		s.drop()
	}
	if err := syscall.Kill(p.pid(), syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	p.check()
	p.quit()
}
