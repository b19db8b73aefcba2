package kernel

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/test/vm"
)

// setClock sets the machine's clock, which is done in the emulated one only.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
	then := unix.NsecToTimeval(now.Nano() + int64(by))
	if err := unix.Settimeofday(&then); err != nil {
		t.Fatal(err)
	}
}

// The machine's clock is set, back and forth, while faults are in force: each ends when its ttl is over, not a day later and not
// at once.
func TestClockIsSet(t *testing.T) {
	vm.Need(t)
	n := startNode(t)
	c := start(t, "clock", mountLoop)
	inject := func(ttl string) {
		t.Helper()
		if out, err := n.faultgraft("inject", "--pid", itoa(c.pid()), "--kernel", "hook=syscall:mount error=ENOMEM ttl="+ttl); err != nil {
			t.Fatalf("inject: %v: %s", err, out)
		}
		failed := count(c.output(), noMemory)
		await(t, "mount prints "+noMemory, func() bool { return count(c.output(), noMemory) > failed })
	}
	inject("15s")
	setClock(t, -24*time.Hour)
	await(t, "the fault has ended", func() bool { return len(n.ps()) == 0 })
	awaitMounts(t, c) // what failed before is printed by then
	failed := count(c.output(), noMemory)
	awaitMounts(t, c)
	if now := count(c.output(), noMemory); now != failed {
		t.Errorf("%d mounts failed after the fault's end", now-failed)
	}
	inject("1h")
	setClock(t, 48*time.Hour)
	failed = count(c.output(), noMemory)
	await(t, "mounts fail still", func() bool { return count(c.output(), noMemory) > failed+1 })
	if all := n.ps(); len(all) != 1 {
		t.Errorf("ps: %+v", all)
	}
	setClock(t, -24*time.Hour) // in all it is as it was
	if all := n.ps(); len(all) != 1 {
		t.Errorf("ps: %+v", all)
	}
}

// The same with a layer, on kernels that have what a graft needs.
func TestClockIsSetUnderALayer(t *testing.T) {
	vm.NeedDebian(t)
	s := startStoppable(t, "clock-layer")
	inject := func(ttl string) {
		t.Helper()
		if out, err := s.faultgraft("inject", "--pid", itoa(s.pid()), "--path", "/data", "io error=EIO op=fsync ttl="+ttl); err != nil {
			t.Fatalf("inject: %v: %s", err, out)
		}
	}
	inject("30s")
	s.is("EIO", "fsync data")
	setClock(t, -24*time.Hour)
	await(t, "the fault has ended", func() bool { return len(s.layers()) == 0 })
	s.whole("ok", "ok")
	inject("1h")
	setClock(t, 48*time.Hour)
	s.whole("EIO", "ok")
	s.active()
	setClock(t, -24*time.Hour) // in all it is as it was
	s.whole("EIO", "ok")
	s.active()
	s.recover()
	s.whole("ok", "ok")
}
