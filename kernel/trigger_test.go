package kernel

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"golang.org/x/sys/unix"
)

func socketRule(change ...func(*policy.Rule)) policy.Rule {
	r := rule(HookSyscall, "socket", unix.EXDEV, change...)
	r.Kernel.Backend = mountBackend()
	return r
}

// K7: which operations fire is what policy.Counter says, one by one.
func TestTriggers(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/triggers")
	const n = 60
	for i, trigger := range []policy.Trigger{
		{P: 1}, {P: 0}, {P: 0.5, Seed: 7}, {P: 0.1, Seed: 1 << 63}, {P: 1, After: 5}, {P: 1, Every: 4},
		{P: 1, Times: 3}, {P: 1, After: 6, Times: 1}, {P: 1, After: 2, Every: 3, Times: 5}, {P: 0.6, After: 3, Every: 2, Times: 6, Seed: 42},
	} {
		trigger.TTL = time.Hour
		r := socketRule()
		r.Trigger = trigger
		a := arm(t, in, Fault{ID: fmt.Sprint(i), Rule: r, Cgroup: c})
		counter, expect := policy.NewCounter(trigger, time.Unix(0, 0)), make([]byte, n)
		for j := range expect {
			expect[j] = '.'
			if _, fires := counter.Fire(time.Unix(0, 0), 0); fires {
				expect[j] = 'x'
			}
		}
		_, got := act(t, c, fmt.Sprintf("pattern %d", n))
		if got != string(expect) {
			t.Errorf("%+v:\n%s, want\n%s", trigger, got, expect)
		}
		if k := counters(t, a); k.Matched != n || k.Injected != uint64(strings.Count(got, "x")) {
			t.Errorf("%+v: counted %+v", trigger, k)
		}
		if err := a.Disarm(); err != nil {
			t.Fatal(err)
		}
	}
}

// K7: `times` is exact however many threads race, with and without chance.
func TestTimesUnderThreads(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/threads")
	for i, trigger := range []policy.Trigger{{P: 1, Times: 1000}, {P: 0.9, Seed: 3, Times: 1000}} {
		trigger.TTL = time.Hour
		r := socketRule()
		r.Trigger = trigger
		a := arm(t, in, Fault{ID: fmt.Sprint(i), Rule: r, Cgroup: c})
		if _, got := act(t, c, "threads 64"); got != fmt.Sprint(trigger.Times) {
			t.Errorf("%+v: %s fired, want %d", trigger, got, trigger.Times)
		}
		if k := counters(t, a); k.Injected != trigger.Times || k.Matched != 6400 {
			t.Errorf("%+v: counted %+v", trigger, k)
		}
		if err := a.Disarm(); err != nil {
			t.Fatal(err)
		}
	}
}

// K12: delay, pulses and the end of the ttl are decided in the kernel.
func TestClock(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/clock")
	pulses := policy.Trigger{P: 1, TTL: 100 * time.Hour, Delay: time.Hour, Active: time.Hour, Idle: time.Hour}
	for name, x := range map[string]struct {
		age  time.Duration
		fail bool
	}{"delay": {0, false}, "pulse": {90 * time.Minute, true}, "rest": {150 * time.Minute, false}, "next pulse": {210 * time.Minute, true}} {
		r := socketRule()
		r.Trigger = pulses
		a := arm(t, in, Fault{ID: name, Rule: r, Cgroup: c, Age: x.age})
		errno := unix.Errno(0)
		if x.fail {
			errno = unix.EXDEV
		}
		want(t, c, "socket", errno)
		k := counters(t, a)
		if k.Evaluated == 0 || (k.Matched > 0) != x.fail {
			t.Errorf("%s: counted %+v", name, k)
		}
		if err := a.Disarm(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTTLEndsInTheKernel(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/ttl")
	r := socketRule()
	a := arm(t, in, Fault{ID: "ttl", Rule: r, Cgroup: c, Age: r.Trigger.TTL - 5*time.Second})
	status, _ := act(t, c, "socket")
	if !a.Expired() && status != int(unix.EXDEV) {
		t.Errorf("before the end: status %d", status)
	}
	for !a.Expired() {
		time.Sleep(50 * time.Millisecond)
	}
	want(t, c, "socket", 0) // nobody has disarmed it
	if d := time.Until(a.Ends()); d > 0 {
		t.Errorf("it is over, and ends in %v", d)
	}
	if _, err := in.Arm(t.Context(), Fault{ID: "over", Rule: r, Cgroup: c, Age: r.Trigger.TTL}); err == nil {
		t.Error("a fault whose ttl is over was armed")
	}
}
