package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// Keeper and server are killed at once: the holder has another keeper take the layers off. The target sees no error.
func TestKeeperAndServerDieAtOnce(t *testing.T) {
	for name, env := range map[string][]string{"replaced": nil, "replaced without resend": noResend, "not replaced": noTakeover} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.env = env
			h := r.startFaulted("5m")
			r.oneServer()
			server, keepers := r.processes("server"), r.processes("keeper")
			for _, pid := range append(server, keepers...) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			h.reads() // it waits, at most
			r.awaitUnmounted(h.holder, time.Minute)
			h.asBefore()
			r.awaitOff(time.Minute, "still grafted")
		})
	}
}

// Whoever follows a dead server is killed as well, at each of its steps, four times in a row: another one follows, and the target only waits.
func TestSuccessorsAreKilled(t *testing.T) {
	const kills = 4
	for _, point := range failpoint.All() {
		if !strings.HasPrefix(point, "server follow.") {
			continue
		}
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.env = []string{failpoint.At + "=kill:" + point, fmt.Sprintf("%s=%d", failpoint.Times, kills)}
			p := r.write("f", "0123456789")
			h := r.start()
			h.ok("open f %s rdwr", p)
			h.ok("lseek f 4")
			before := h.snapshot()
			g := r.inject(h, r.data, "io error=EIO op=fsync path="+p+" times=2 ttl=5m")
			h.is("EIO", "fsync f")
			h.ok("open locked %s rdwr", p)
			h.ok("flock locked")
			works := r.startRecorderIn(h)
			r.replaced(syscall.SIGKILL, 1)
			for n := 1; n <= kills; n++ {
				if _, err := os.Stat(filepath.Join(r.reached, failpoint.MarkOf("kill", point, n))); err != nil {
					t.Errorf("successor %d was not killed: %v", n, err)
				}
			}
			h.is("EIO", "fsync f")
			h.is("ok", "fsync f")
			if got := h.do("trylock %s", p); got == "ok" {
				t.Error("the lock is lost")
			}
			works.more("goes on", false)
			if l := r.list(); len(l) != 1 || l[0].State != keeper.StateActive || l[0].Rules[0].Fired != 2 {
				t.Errorf("after the takeover: %+v%s", l, r.logs())
			}
			h.ok("close locked")
			r.recover(g)
			h.is("ok 456789", "read f 100")
			h.ok("lseek f 4")
			same(t, before, h.snapshot())
		})
	}
}

// Whoever follows is killed without end, before it has served, fast or slowly: after some the rules end and one more follows, which
// takes the layers off; if that is killed too, nobody does. The target waits, and sees no error.
func TestSuccessorsAreKilledWithoutEnd(t *testing.T) {
	const point, limit = "server follow.holder", 31
	for _, c := range []struct {
		name  string
		how   string // what the failpoint does
		times int
		said  string
	}{
		{"until the last one", "kill", limit, "without rules, until they are taken off: 31 servers have died one after the other"},
		{"and the last one too", "kill", 1000, "the one that followed to take the layers off has died too"},
		{"each after a while", "stop", 1000, "the one that followed to take the layers off has died too"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.env = []string{fmt.Sprintf("%s=%s:%s", failpoint.At, c.how, point), fmt.Sprintf("%s=%d", failpoint.Times, c.times)}
			p := r.write("f", "0123456789")
			h := r.start()
			h.ok("open f %s rdwr", p)
			h.ok("lseek f 4")
			before := h.snapshot()
			r.inject(h, r.data, "io error=EIO op=fsync path="+p+" ttl=5m")
			h.is("EIO", "fsync f")
			works := r.startRecorderIn(h)
			r.killServer(syscall.SIGKILL)
			deaths := 0
			for end := time.Now().Add(2 * time.Minute); strings.Contains(h.mountinfo(), "fuse.faultgraft"); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("still grafted after %d deaths%s", deaths, r.logs())
				}
				for {
					mark, _ := os.ReadFile(filepath.Join(r.reached, failpoint.MarkOf(c.how, point, deaths+1)))
					pid, err := strconv.Atoi(strings.TrimSpace(string(mark)))
					if err != nil {
						break // nobody is there yet
					}
					if deaths++; c.how == "stop" {
						time.Sleep(400 * time.Millisecond)
						_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended otherwise
					}
				}
			}
			works.more("goes on", false)
			h.is("ok", "fsync f")
			h.is("ok 456789", "read f 100")
			h.ok("lseek f 4")
			same(t, before, h.snapshot())
			r.awaitOff(time.Minute, "the keeper does not come to its end")
			if !slices.ContainsFunc(r.events(), func(e keeper.Event) bool {
				return e.Type == keeper.EventServer && strings.Contains(e.Message, c.said)
			}) {
				t.Errorf("the event log does not say %q: %+v", c.said, r.events())
			}
			if deaths < limit {
				t.Errorf("after %d deaths nobody followed any more", deaths)
			}
		})
	}
}

// Servers crash again and again, none has served for long: the layer is taken off.
func TestServersThatKeepCrashing(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	crashes := 0
	for end := time.Now().Add(time.Minute); len(r.list()) > 0; time.Sleep(20 * time.Millisecond) {
		for _, pid := range r.processes("server") {
			if syscall.Kill(pid, syscall.SIGSEGV) == nil { // it may have ended
				crashes++
			}
		}
		if time.Now().After(end) {
			t.Fatalf("still grafted after %d crashes: %+v%s", crashes, r.list(), r.logs())
		}
	}
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
	if !slices.ContainsFunc(r.events(), func(e keeper.Event) bool {
		return e.Type == keeper.EventServer && strings.Contains(e.Message, "have crashed one after the other")
	}) {
		t.Errorf("the event log does not say why: %+v", r.events())
	}
}
