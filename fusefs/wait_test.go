package fusefs_test

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/policy"
)

// F1: each operation can be hung, is let go by hand, hangs again, and is got out by a signal or by the end of the rule.
func TestHangOnEveryOp(t *testing.T) {
	for _, c := range opCases {
		t.Run(c.op, func(t *testing.T) {
			b := prepare(t, c)
			f := policy.IOFault{Hang: true}
			if c.glob != "" {
				f.Path = c.glob
			}
			b.faults(fault(t, c.op, f))
			_, result := inThread(func() error { return c.call(b) })
			waitFor(t, "hangs", func() bool { return b.Rules()[0].Fired == 1 })
			if !c.delay {
				select {
				case err := <-result:
					t.Fatal("it did not hang: ", err)
				case <-time.After(20 * time.Millisecond):
				}
			}
			waitFor(t, "one to release", func() bool { return b.ReleaseHung("r0") == 1 })
			for released := false; !released; { // some calls are several operations
				select {
				case err := <-result:
					if err != nil && c.op != "ioctl" {
						t.Error(err)
					}
					released = true
				case <-time.After(5 * time.Millisecond):
					b.ReleaseHung("")
				}
			}
			waitFor(t, "an event", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.events) > 0 })
			if e := b.recorded()[0]; e.Op.String() != c.op || e.Action != fusefs.ActionHang || e.Errno != 0 || !e.Cut || e.Latency <= 0 {
				t.Errorf("event %+v", e)
			}
		})
	}
}

func TestHangIsLeft(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDONLY)
	read := func() error { _, err := unix.Pread(fd, make([]byte, 1), 0); return err }
	b.faults(fault(t, "read", policy.IOFault{Hang: true, Errors: nil}))
	if n := b.ReleaseHung("r0"); n != 0 {
		t.Errorf("%d hung before anything came", n)
	}
	tid, c := inThread(read)
	waitFor(t, "the read", func() bool { return b.Rules()[0].Fired == 1 })
	must(t, unix.Tgkill(os.Getpid(), tid, unix.SIGURG))
	if err := within(t, c); err != unix.EINTR {
		t.Errorf("signal: %v", err)
	}
	if n := b.ReleaseHung("r0"); n != 0 {
		t.Errorf("%d still hang", n)
	}
	_, c = inThread(read)
	waitFor(t, "the read", func() bool { return b.Rules()[0].Fired == 2 })
	b.faults()
	if err := within(t, c); err != nil {
		t.Errorf("rule removed: %v", err)
	}
}

// A process that hangs can be killed.
func TestHangIsKilled(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "content")
	for _, op := range []string{"open", "read", "flush", "getattr"} {
		b.faults()
		b.faults(fault(t, op, policy.IOFault{Path: "/data/f", Hang: true}))
		cmd := exec.Command("cat", b.path("f"))
		must(t, cmd.Start())
		waitFor(t, op+" hangs", func() bool { return b.Rules()[0].Fired == 1 })
		must(t, cmd.Process.Kill())
		_, c := inThread(func() error { _ = cmd.Wait(); return nil })
		_ = within(t, c)
		b.faults() // before what the end of the process causes hangs as well
	}
}

// Cancelling a rule wakes every sleeper at once, whatever it waits for.
func TestManySleepersWakeAtOnce(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDONLY)
	const n = 300
	for _, f := range []policy.IOFault{
		{Latency: &policy.Latency{Base: time.Hour}},
		{Hang: true},
		{Throttle: &policy.Throttle{OpsPerSec: 1.0 / 3600}},
	} {
		r := fault(t, "read", f)
		r.Trigger.TTL = 2 * time.Hour
		b.faults(r)
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				runtime.LockOSThread() // ends with its thread: the runtime's signals would end the call
				if err := unix.PthreadSigmask(unix.SIG_BLOCK, &unix.Sigset_t{Val: [16]uint64{1 << (unix.SIGURG - 1)}}, nil); err != nil {
					t.Error(err)
				}
				if _, err := unix.Pread(fd, make([]byte, 1), 0); err != nil {
					t.Error(err)
				}
			})
		}
		waitFor(t, "all asleep", func() bool { return b.Rules()[0].Fired == n })
		b.faults()
		_, awake := inThread(func() error { wg.Wait(); return nil })
		if err := within(t, awake); err != nil {
			t.Errorf("%+v: %v", f, err)
		}
		if e := b.recorded(); len(e) != n {
			t.Errorf("%d events of %d sleepers", len(e), n)
		}
	}
}

// A throttle lets so much pass in a time, in the order in which it came.
func TestThrottle(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", strings.Repeat("x", 1<<16))
	fd := b.open("f", unix.O_RDONLY)
	for _, c := range []struct {
		throttle policy.Throttle
		size, n  int
		least    time.Duration
	}{
		{policy.Throttle{OpsPerSec: 100, BurstOps: 1}, 1, 21, 200 * time.Millisecond},
		{policy.Throttle{BytesPerSec: 1 << 20, BurstBytes: 1 << 16}, 1 << 14, 20, 250 * time.Millisecond}, // 320 KiB less the burst
		{policy.Throttle{BytesPerSec: 1 << 20, BurstBytes: 1}, 1 << 16, 4, 250 * time.Millisecond},        // each larger than the burst
	} {
		b.faults(fault(t, "read", policy.IOFault{Throttle: &c.throttle}))
		buf := make([]byte, c.size)
		start := time.Now()
		for range c.n {
			n, err := unix.Pread(fd, buf, 0)
			must(t, err)
			if n != c.size {
				t.Fatalf("read %d", n)
			}
		}
		if took := time.Since(start); took < c.least*99/100 || took > c.least+time.Minute {
			t.Errorf("%+v: %d reads of %d took %v, want %v", c.throttle, c.n, c.size, took, c.least)
		}
		events := b.recorded()
		if len(events) != c.n || events[c.n-1].Action != fusefs.ActionThrottle || events[c.n-1].Latency == 0 {
			t.Errorf("%d events, the last one %+v", len(events), events[len(events)-1])
		}
	}
}
