package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// retryWait is how long a keeper leaves a layer alone that did not come off.
const retryWait = 5 * time.Second

// failedTries counts how often a keeper has tried again in vain, by itself, to take a layer off.
func (r *rig) failedTries() int { return strings.Count(r.logs(), "take the layer off") }

// However often somebody asks in vain for a layer to be taken off, it is tried again as often as after the first time: each try
// starts a process, and looks at the target.
func TestFailedRecoversAreTriedAgainInOneChain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "0123456789"))
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	d := r.debug(t, h, false)
	for range 10 {
		if out, err := r.run("recover", g.ID); err == nil || !strings.Contains(err.Error(), "is traced by process") {
			t.Fatalf("recover: %q, %v", out, err)
		}
	}
	began, had := time.Now(), r.failedTries()
	for r.failedTries() < had+3 { // so that it would be seen if there were none
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("it is not tried again%s", r.logs())
		}
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(retryWait)
	tries := r.failedTries() - had
	if most := int(time.Since(began)/retryWait) + 1; tries > most {
		t.Errorf("%d tries in %v, one chain makes %d", tries, time.Since(began), most)
	}
	d.end()
	r.awaitOff(time.Minute, "the layer does not come off when the debugger has gone")
	same(t, before, h.snapshot())
}

// Where closes hang, no process can be started, and each try waits for that. Who asks for the same hears the same, at once.
func TestRecoversAtOnceWhereClosesHang(t *testing.T) {
	x := newHungCloses(t)
	g := x.inject(x.h, x.data, "io error=EIO op=fsync ttl=5m")
	x.fs.ok("hang closes")
	began := time.Now()
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			if out, err := x.run("recover", g.ID); err == nil || !strings.Contains(err.Error(), "does not answer when a file is closed") {
				t.Errorf("recover: %q, %v", out, err)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("recover said so after %v", took)
			}
		})
	}
	all.Wait()
	x.h.is("ok", "fsync f")
	x.othersGoOn()
	x.fs.ok("go")
	x.comesOff()
}

// The reason of a stop that comes while a graft is made is what the graft is refused with, whatever has been done of it: its rules are
// not in force afterwards, nor is it said to be made.
func TestStopInMidGraft(t *testing.T) {
	for _, step := range some("swapped", "covered").or("server", "served", "rules") {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			h := r.start()
			h.ok("open f %s rdwr", r.write("f", "0123456789"))
			before := h.snapshot()
			graft := r.command("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m")
			graft.Env = append(graft.Env, failing("keeper graft", "stop:"+step))
			var said, stopped strings.Builder
			graft.Stdout, graft.Stderr = &said, &said
			if err := graft.Start(); err != nil {
				t.Fatal(err)
			}
			_, resume := r.stoppedAt("keeper graft." + step)
			stop := r.command("stop", "--all", "--reason", "incident 4711")
			stop.Stdout, stop.Stderr = &stopped, &stopped
			if err := stop.Start(); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
				if _, err := os.Stat(filepath.Join(r.state, "stopped.json")); err == nil {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the node is not stopped")
				}
			}
			resume()
			if err := ended(graft); err == nil || !strings.Contains(said.String(), "incident 4711") {
				t.Errorf("inject, while the node was stopped: %v: %s", err, said.String())
			}
			if err := ended(stop); err != nil {
				t.Errorf("stop: %v: %s%s", err, stopped.String(), r.logs())
			}
			h.is("ok", "fsync f")
			same(t, before, h.snapshot())
			if left := r.list(); len(left) != 0 {
				t.Errorf("left after the stop: %+v", left)
			}
			if out, err := r.run("release"); err != nil {
				t.Errorf("release: %q, %v", out, err)
			}
		})
	}
}
