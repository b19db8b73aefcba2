package tracer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// lend has another process have what is to be given back, so that this one needs no descriptor for it.
func (s *swapper) lend(o tracer.Options) tracer.Options {
	s.t.Helper()
	cmd := exec.Command("sleep", "infinity")
	for _, k := range s.kept {
		f := os.NewFile(uintptr(dup(s.t, k.was)), "lent")
		defer func() { _ = f.Close() }() // a duplicate
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	l, err := tracer.NewLender(cmd.Process.Pid)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		l.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	one := o.Replace
	o.Replace = nil
	o.ReplaceAll = func(all []*tracer.Description) []tracer.Replacement {
		made := make([]tracer.Replacement, len(all))
		for i, d := range all {
			if made[i].FD, made[i].Err = one(d); made[i].Err != nil || d.Kind != tracer.Descriptor {
				continue
			}
			for n, k := range s.kept {
				if same(k.was, made[i].FD) {
					_ = unix.Close(made[i].FD) // a duplicate
					made[i] = tracer.Replacement{FD: 3 + n, Lender: l}
					break
				}
			}
		}
		return made
	}
	return o
}

// New files that another process has open: they come to the target as files of our own do, and back where the swap fails; none of them is
// open here for longer than it takes.
func TestBorrowedFiles(t *testing.T) {
	for name, neverEmpty := range map[string]bool{"exchanged": true, "filled": false} {
		for _, args := range [][]string{{"hold"}, {"files", "300", "3"}} {
			t.Run(name+" "+args[0], func(t *testing.T) {
				at := newPlace(t)
				p := start(t, "target", append([]string{args[0], at.a}, args[1:]...)...)
				p.check()
				s := newSwapper(t, at, p.pid())
				swap(t, s.forward()) // the first leaves harmless traces
				swap(t, s.backward())
				s.drop()
				before := state(t, p.pid())
				swap(t, s.forward())
				there := state(t, p.pid())
				boom := errors.New("boom")
				o := s.lend(s.backward())
				o.NeverEmpty = neverEmpty
				o.Step = func(step string) error {
					if step == tracer.StepCheck {
						return boom
					}
					return nil
				}
				ours := openFiles(t)
				if _, err := tracer.Swap(context.Background(), o); !errors.Is(err, boom) || errors.Is(err, tracer.ErrUnfinished) {
					t.Fatalf("a swap that fails: %v", err)
				}
				sameState(t, there, state(t, p.pid()))
				most := 0
				o.Step = func(step string) error {
					if step == tracer.StepSeize {
						most = openFiles(t)
					}
					return nil
				}
				swap(t, o)
				if n := openFiles(t); n != ours {
					t.Errorf("%d descriptors of ours are open, %d before", n, ours)
				}
				if n := most - ours; args[0] == "files" && n > 300+50 {
					t.Errorf("%d descriptors for 300 files", n)
				}
				s.drop()
				sameState(t, before, state(t, p.pid()))
				p.check()
				p.quit()
			})
		}
	}
}

// A swap for which there are not enough descriptors leaves nothing behind where nothing may be left.
func TestRequireRoom(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "20", "1")
	s := newSwapper(t, at, p.pid())
	before := state(t, p.pid())
	o := s.forward()
	one, n := o.Replace, 0
	o.Replace = func(d *tracer.Description) (int, error) {
		if n++; n == 5 {
			return -1, fmt.Errorf("open it: %w", syscall.EMFILE)
		}
		return one(d)
	}
	o.RequireAll, o.RequireRoom = false, true
	if _, err := tracer.Swap(context.Background(), o); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("no room for the fifth: %v", err)
	}
	sameState(t, before, state(t, p.pid()))
	s.drop()
	o.RequireRoom, n = false, 0
	if r := swap(t, o); len(r.Skipped) != 1 {
		t.Errorf("left: %+v", r.Skipped)
	}
	s.drop()
	p.check()
	p.quit()
}
