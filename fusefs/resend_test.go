package fusefs_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestResent kills servers with each kind of request, wherever it may be, and compares what its caller and others see
// afterwards with a plain directory: that it was done once, and answered as if nothing had been. Nothing is left
// behind: no open file and no object that the kernel does not know of.
func TestResent(t *testing.T) {
	for _, direct := range []bool{true, false} {
		name := map[bool]string{true: "direct", false: "passthrough"}[direct]
		t.Run(name, func(t *testing.T) {
			resentBothWays(t, func(t *testing.T, noResend bool) {
				f := serveFragile(t, direct, noResend)
				c := f.caller()
				plain := t.TempDir()
				for _, k := range resentCases {
					if !direct && !k.open {
						continue
					}
					t.Run(strings.ReplaceAll(k.name, " ", "_"), func(t *testing.T) { f.resent(t, c, &k, plain) })
				}
			})
		})
	}
}

// Where a request's servers are killed: the first one in the first place, and so on.
var (
	kills     = []string{"begun", "done", "answered", "recorded recorded"}
	idleKills = []string{"read", "recorded"} // of requests that can be done twice
	allKills  = []string{"read", "begun", "done", "recorded", "answered", "sent", "begun begun", "done recorded", "recorded answered"}
)

var everyPlace = flag.Bool("every-place", false, "TestResent kills servers at every place with every kind of request, not only where it matters most")

func (k *resentCase) kills() []string {
	switch {
	case *everyPlace:
		return allKills
	case k.idle:
		return idleKills
	}
	return kills
}

func (f *fragile) resent(t *testing.T, c *caller, k *resentCase, plain string) {
	outer, calls := f.TB, c.TB
	f.TB, c.TB = t, t
	defer func() { f.TB, c.TB = outer, calls }()
	ran := false
	more := time.Duration(0)
	if !k.idle {
		more = time.Second
	}
	for _, at := range k.kills() {
		places := strings.Fields(at)
		first := f.kills
		dir := strings.ReplaceAll(k.name+" "+at, " ", "_")
		on, below := filepath.Join(f.mnt, dir), filepath.Join(plain, dir)
		want := c.do(k.name, "prepare", below) + c.do(k.name, "act", below) + c.do(k.name, "finish", below)
		got := c.do(k.name, "prepare", on)
		f.arm(places[0], k.ops)
		acting := c.begin(k.name, "act", on)
		for i := range places {
			if !f.comes(acting, more) {
				break
			}
			var next *victimCommand
			if i+1 < len(places) {
				a := armed(places[i+1], k.ops, true)
				next = &a
			}
			f.replace(next)
		}
		got += c.wait(acting, "the call") + c.do(k.name, "finish", on)
		f.arm("nowhere", "")
		if got != want {
			t.Errorf("killed at %s (%d kills): on the layer\n%s\nin a plain directory\n%s", at, f.kills-first, got, want)
		}
		f.settled()
		if f.kills == first && !k.idle {
			t.Errorf("no request came to %s", at)
		}
		ran = ran || f.kills > first
	}
	if !ran {
		t.Error("no server was killed")
	}
}

// comes waits until the server has stopped at its place, and reports false if the call is over without that. RELEASE is
// not waited for by its caller: it has a moment more.
func (f *fragile) comes(acting <-chan string, more time.Duration) bool {
	f.Helper()
	end := time.Now().Add(patience)
	over := false
	for ; time.Now().Before(end); time.Sleep(time.Millisecond) {
		if states := taskStates(f.server.Process.Pid); states != "" && strings.Trim(states, "T") == "" {
			return true
		}
		if len(acting) > 0 && !over {
			over = true
			asked := make(chan victimReport, 1)
			in, out := f.in, f.out
			go func() {
				err := in.Encode(victimCommand{Do: "armed"})
				for err == nil {
					var r victimReport
					if err = out.Decode(&r); err == nil && r.Do == "armed" {
						asked <- r
						return
					}
				}
			}()
			for done := false; !done; time.Sleep(time.Millisecond) {
				select {
				case r := <-asked:
					done = true
					if r.Armed {
						end = time.Now().Add(more)
					}
				default:
					states := taskStates(f.server.Process.Pid)
					if states != "" && strings.Trim(states, "T") == "" {
						return true
					}
					if time.Now().After(end) {
						f.Fatal("the server neither stops nor answers")
					}
				}
			}
		}
	}
	if !over {
		f.Fatalf("neither is the call over nor does the server stop: its threads are %q", taskStates(f.server.Process.Pid))
	}
	return false
}

// What rules have drawn for a request is not drawn again: it is counted once, meets the same fault once, and the event is
// recorded once.
func TestResentFaults(t *testing.T) { resentBothWays(t, resentFaults) }

func resentFaults(t *testing.T, noResend bool) {
	for _, c := range []struct {
		name, rule, at, result string
		events                 int // that the last server recorded
	}{
		{"error before it is recorded", "io error=EIO op=mkdir times=1", "recorded", "mkdir: EIO\n", 0},
		{"error", "io error=EIO op=mkdir times=1", "answered", "mkdir: EIO\n", 0},
		{"second", "io error=EIO op=mkdir after=1 times=1", "begun", "mkdir: ok\n", 0},
		{"wait", "io latency=30ms op=mkdir times=1", "begun", "mkdir: ok\n", 0},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			f := serveFragile(t, false, noResend)
			call := f.caller()
			f.setRules(c.rule)
			dir := filepath.Join(f.mnt, "case")
			must(t, os.Mkdir(filepath.Join(f.back, "case"), 0o777))
			f.arm(c.at, "mkdir")
			acting := call.begin("mkdir", "act", dir)
			if !f.comes(acting, 0) {
				t.Fatal("no request came")
			}
			f.replace(nil)
			if got := call.wait(acting, "mkdir"); got != c.result {
				t.Errorf("got %q, not %q", got, c.result)
			}
			r := f.tell(victimCommand{Do: "known"})
			if r.Rules[0].Matched != 1 || r.Resent != 1 {
				t.Errorf("it was counted %d times, and sent again %d times", r.Rules[0].Matched, r.Resent)
			}
			if len(r.Events) != c.events {
				t.Errorf("the second server has recorded %v", r.Events)
			}
		})
	}
}

// A request whose caller is killed while nobody serves is not sent again. What was made for it goes. One that is found is
// answered: its caller waits for that, though it was killed.
func TestResentToNobody(t *testing.T) { resentBothWays(t, resentToNobody) }

func resentToNobody(t *testing.T, noResend bool) {
	for _, k := range []struct{ name, ops string }{{"mkdir", "mkdir"}, {"open", "open"}, {"create", "create"}, {"lookup", "lookup"}} {
		t.Run(k.name, func(t *testing.T) {
			f := serveFragile(t, true, noResend)
			call := f.caller()
			dir := filepath.Join(f.mnt, "case")
			call.do(k.name, "prepare", dir)
			f.arm("recorded", k.ops)
			acting := call.begin(k.name, "act", dir)
			if !f.comes(acting, 0) {
				t.Fatal("no request came")
			}
			again := uint64(0)
			if noResend {
				again = 1
				f.restore(nil)
				must(t, call.cmd.Process.Kill())
				f.tell(victimCommand{Do: "resume"})
			} else {
				asked := armed("asked", "", false)
				asked.Ops = []uint32{0}
				f.restore(&asked)
				must(t, f.in.Encode(victimCommand{Do: "resume"})) // it stops in there
				f.stopped()
				must(t, call.cmd.Process.Kill())
			}
			if got := call.wait(acting, k.name); !strings.HasPrefix(got, "the caller:") {
				t.Fatalf("it was answered: %q", got)
			}
			gone(t, call)
			if !noResend {
				f.replace(nil)
			}
			other := f.caller()
			if got := other.do("mkdir", "prepare", dir+"2") + other.do("mkdir", "act", dir+"2"); got != "mkdir: ok\n" {
				t.Errorf("afterwards: %q", got)
			}
			if r := f.settled(); r.Resent != again {
				t.Errorf("%d requests were sent again", r.Resent)
			}
		})
	}
}

// gone waits until a process that was killed has ended.
func gone(t *testing.T, c *caller) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		states := taskStates(c.cmd.Process.Pid)
		if strings.Trim(states, "Z") == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the caller does not end: its threads are %q", states)
		}
	}
}

// Who waits for a lock goes on waiting when the server is replaced, gets it when its turn comes, and can be killed meanwhile.
func TestResentLockWait(t *testing.T) { resentBothWays(t, resentLockWait) }

func resentLockWait(t *testing.T, noResend bool) {
	f := serveFragile(t, false, noResend)
	holder, waiter, victim := f.caller(), f.caller(), f.caller()
	dir := filepath.Join(f.mnt, "case")
	holder.do("lock", "prepare", dir)
	if got := holder.do("lock", "act", dir); got != "lock: ok\n" {
		t.Fatal(got)
	}
	waiter.do("lock and wait", "prepare", dir)
	victim.do("lock and wait", "prepare", dir)
	f.arm("begun", "setlkw")
	waiting := waiter.begin("lock and wait", "act", dir)
	if !f.comes(waiting, 0) {
		t.Fatal("it did not wait")
	}
	again := armed("begun", "setlkw", true)
	f.replace(&again)
	if !f.comes(waiting, 0) {
		t.Fatal("it did not wait again")
	}
	f.replace(nil)
	fresh := armed("begun", "setlkw", false)
	fresh.Fresh = true // the other one may come only now
	f.tell(fresh)
	dying := victim.begin("lock and wait", "act", dir)
	if !f.comes(dying, 0) {
		t.Fatal("the second did not wait")
	}
	f.replace(nil)
	must(t, victim.cmd.Process.Kill())
	victim.wait(dying, "the lock of who was killed")
	gone(t, victim)
	if len(waiting) > 0 {
		t.Fatalf("a lock that is held was given: %s", <-waiting)
	}
	holder.do("lock", "finish", dir)
	if got := waiter.wait(waiting, "the lock"); got != "lock: ok\n" {
		t.Errorf("who waited got %q", got)
	}
	waiter.do("lock and wait", "finish", dir)
	f.settled()
}

// A call that a signal has interrupted while nobody served ends with EINTR: the kernel interrupts it again.
func TestResentInterrupted(t *testing.T) { resentBothWays(t, resentInterrupted) }

func resentInterrupted(t *testing.T, noResend bool) {
	f := serveFragile(t, false, noResend)
	f.setRules("io hang op=mkdir")
	call := f.caller()
	dir := filepath.Join(f.mnt, "case")
	must(t, os.Mkdir(filepath.Join(f.back, "case"), 0o777))
	f.arm("read", "mkdir")
	acting := call.begin("mkdir", "act", dir)
	if !f.comes(acting, 0) {
		t.Fatal("no request came")
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", call.cmd.Process.Pid))
	must(t, err)
	for _, e := range threads { // one of them waits; the others do nothing about this signal
		tid, err := strconv.Atoi(e.Name())
		must(t, err)
		must(t, unix.Tgkill(call.cmd.Process.Pid, tid, unix.SIGCHLD))
	}
	f.replace(nil)
	if got := call.wait(acting, "mkdir"); got != "mkdir: EINTR\n" {
		t.Errorf("who was interrupted got %q", got)
	}
	if r := f.settled(); r.Rules[0].Matched != 1 {
		t.Errorf("it was counted %d times", r.Rules[0].Matched)
	}
	if _, err := os.Stat(filepath.Join(f.back, "case/d")); err == nil {
		t.Error("it was made all the same")
	}
}
