package tracer_test

import (
	"testing"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// TestSwapForthAndBack: G4, G5, G6, G8, G9, G10, G11, G12, G18, G25.
func TestSwapForthAndBack(t *testing.T) {
	for _, program := range []string{"target", "target-static"} {
		t.Run(program, func(t *testing.T) {
			at := newPlace(t)
			p := start(t, program, "hold", at.a)
			p.check()
			pids, err := tree(p.pid())
			if err != nil {
				t.Fatal(err)
			}
			s := newSwapper(t, at, p.pid())
			ours := openFiles(t)
			for range 5 {
				r := swap(t, s.forward())
				if n := onMount(t, at.mntA, pids...); n != 0 || len(r.Swapped) < 25 {
					t.Fatalf("%d objects are left on the old mount, %d were swapped: %+v", n, len(r.Swapped), r.Skipped)
				}
				p.check()
				swap(t, s.backward())
				if n := onMount(t, at.mntB, pids...); n != 0 {
					t.Fatalf("%d objects are left on the new mount", n)
				}
				s.drop()
				p.check()
				before := state(t, pids...)
				swap(t, s.forward())
				swap(t, s.backward())
				s.drop()
				sameState(t, before, state(t, pids...))
			}
			if n := openFiles(t); n != ours {
				t.Errorf("%d descriptors of ours are open, %d before", n, ours)
			}
			p.check()
			p.quit()
		})
	}
}

// A server goes on with the descriptions that are to be given back, until their program stands: what it did to offset and flags
// does not come to the program.
func TestReplacementIsInUse(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "20", "1")
	s := newSwapper(t, at, p.pid())
	before := state(t, p.pid())
	swap(t, s.forward())
	o := s.backward()
	o.InUse = true
	o.Step = func(step string) error {
		if step != tracer.StepSeize {
			return nil
		}
		for _, k := range s.kept {
			if _, err := unix.Seek(k.was, 1000, unix.SEEK_SET); err != nil {
				return err
			}
			flags, err := unix.FcntlInt(uintptr(k.was), unix.F_GETFL, 0)
			if err == nil {
				_, err = unix.FcntlInt(uintptr(k.was), unix.F_SETFL, flags^unix.O_APPEND)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	swap(t, o)
	s.drop()
	sameState(t, before, state(t, p.pid()))
	p.check()
	p.quit()
}
