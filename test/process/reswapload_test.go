package process

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The C program with every kind of object and every kind of blocking call goes through moves: nothing about them changes.
func TestEveryKindOfObjectIsMoved(t *testing.T) {
	bin := buildTarget(t)
	for _, args := range [][]string{{"hold"}, {"files", manyFiles(), "32"}, {"seccomp"}} {
		t.Run(args[0], func(t *testing.T) {
			r := newRig(t)
			p := r.program(t, bin, append([]string{args[0], r.data}, args[1:]...)...)
			if args[0] == "seccomp" {
				if got := p.h.do("go"); got != "ready" { // its filter is on from here
					t.Fatalf("the target says %q", got)
				}
			}
			p.check()
			for range 3 {
				g := r.inject(p.h, r.data, "io error=EIO op=mkdir p=0 ttl=2m")
				p.check()
				u := r.update(g, "io error=EIO op=data p=0 ttl=2m")
				if len(u.Report.Swapped) == 0 || len(u.Report.Notes) > 0 {
					t.Fatalf("moved %d objects, notes %q", len(u.Report.Swapped), u.Report.Notes)
				}
				t.Logf("%d objects moved, stopped for %.1f ms; the graft moved %d, in %.1f ms", len(u.Report.Swapped), u.PauseMs, len(g.Report.Swapped), g.PauseMs)
				for _, s := range u.Report.Skipped {
					t.Logf("not moved: %s: %s", &s.Object, s.Reason)
				}
				p.check()
				for _, s := range r.recover(g).Report.Skipped {
					t.Errorf("left on the layer: %s: %s", &s.Object, s.Reason)
				}
				p.check()
			}
			if left := onLayer(t, p.h.pid(), r.data); left != "" {
				t.Errorf("on a layer still: %s", left)
			}
		})
	}
}

// Rules come and go while three processes open, read and write their files: no call fails.
func TestRuleChangesUnderLoad(t *testing.T) {
	r := newRig(t)
	first := r.start()
	g := r.inject(first, r.data, "io error=EIO op=mkdir ttl=5m")
	readers := []*holder{first}
	for range 2 {
		readers = append(readers, r.startWith("nsenter", "--target", fmt.Sprint(first.pid()), "--mount", binaries.holder))
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i, h := range readers {
		f := r.write(fmt.Sprint("f", i), "0123456789")
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !stop.Load() {
				h.ok("open f %s rdwr", f)
				for end := time.Now().Add(time.Second); !stop.Load() && time.Now().Before(end); {
					h.is("ok 2", "pwrite f 4 ab")
					h.is("ok 0123ab6789", "pread f 0 10")
				}
				h.ok("close f")
			}
		}()
	}
	moved := 0
	for n := 0; n < 5 || n < 50 && moved == 0; n++ {
		moved += len(r.update(g, "io error=EIO op=read+write p=0 ttl=5m").Report.Swapped)
		r.update(g, "io error=EIO op=mkdir ttl=5m")
		time.Sleep(1200 * time.Millisecond) // files are closed, and the next ones are passed through again
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d files were moved", moved)
	if moved == 0 {
		t.Error("nothing was moved: this test tests nothing")
	}
	r.recover(g)
}
