package process

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// freeze stops the one process with that role, which thaw lets go on.
func (r *rig) freeze(role string) (thaw func()) {
	r.t.Helper()
	r.oneServer()
	pids := r.processes(role)
	if len(pids) != 1 {
		r.t.Fatalf("%ss: %v", role, pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		r.t.Fatal(err)
	}
	goOn := func() { _ = syscall.Kill(pids[0], syscall.SIGCONT) }
	r.t.Cleanup(goOn)
	return func() {
		r.t.Helper()
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pids[0])); err != nil || !strings.Contains(string(stat), ") T ") {
			r.t.Errorf("the %s did not stand still all the time: %s %v", role, stat, err)
		}
		goOn()
	}
}

// Dead man: the layer itself knows when a rule's time is up. A keeper that does nothing any more keeps no rule alive, and
// nobody waiting; when it goes on, it takes off what is over.
func TestTTLEndsWithoutTheKeeper(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	r.inject(h, r.data, "io error=EIO op=fsync ttl=20s", "io error=ENOSPC op=write ttl=10m", "io hang op=fdatasync ttl=20s")
	h.is("EIO", "fsync f")
	thaw := r.freeze("keeper")
	h.is("ok", "fdatasync f") // waits until its rule's end
	for end := time.Now().Add(2 * time.Minute); h.do("fsync f") != "ok"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the rule has not ended")
		}
	}
	for range 20 {
		h.is("ok", "fsync f")
	}
	h.is("ENOSPC", "write f x") // its time is not up
	thaw()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		l := r.list()
		if len(l) != 1 {
			t.Fatalf("after the keeper went on: %+v", l)
		}
		over := 0
		for _, rule := range l[0].Rules {
			if rule.Expired {
				over++
			}
		}
		if over == 2 {
			r.recover(l[0])
			break
		}
		if time.Now().After(end) {
			t.Fatalf("rules: %+v", l[0].Rules)
		}
	}
	same(t, before, h.snapshot())
}

// The last rule ends while the keeper stands still: the layer stays, without effect, and is off as soon as the keeper goes on.
func TestLastTTLEndsWithoutTheKeeper(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.startFaulted("15s")
	thaw := r.freeze("keeper")
	for end := time.Now().Add(2 * time.Minute); h.do("fsync f") != "ok"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the rule has not ended")
		}
	}
	h.reads()
	if !strings.Contains(h.mountinfo(), "fuse.faultgraft") {
		t.Error("somebody else has taken the layer off")
	}
	thaw()
	r.awaitOff(time.Minute, "still grafted")
	h.asBefore()
}
