package process

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cycles is how often a graft comes and goes in tests of races: FAULTGRAFT_TEST_CYCLES, or a number that does not take minutes.
func cycles(t *testing.T) int {
	t.Helper()
	s := os.Getenv("FAULTGRAFT_TEST_CYCLES")
	if s == "" {
		return 6
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("FAULTGRAFT_TEST_CYCLES: %v", err)
	}
	return n
}

// G7: no other process ever gets a POSIX lock while grafts and ungrafts come: one that uses the file below the layer
// with a descriptor that is open, one that opens it each time, and those of the target's namespace, for reading too.
func TestPosixLocksHaveNoGap(t *testing.T) {
	r := newRig(t)
	written, read := r.write("written", "0123456789"), r.write("read", "0123456789")
	h := r.start()
	for _, n := range []string{"open w " + written + " rdwr", "setlk w 2 5", "open w2 " + written + " rdonly", "open r " + read + " rdwr", "rdlk r 2 5"} {
		h.ok("%s", n)
	}
	before := h.snapshot() // fdinfo shows the locks
	outside := func() *holder { return r.startWith(binaries.holder) }
	inside := func() *holder {
		return r.startWith("nsenter", "-t", strconv.Itoa(h.pid()), "-m", binaries.holder)
	}
	contenders := map[string]*holder{}
	for _, c := range []struct {
		name, path, how, kind string
		from                  func() *holder
	}{
		{"outside, open", written, "once", "write", outside},
		{"outside, opened anew", written, "again", "write", outside},
		{"outside, against a read lock", read, "once", "write", outside},
		{"of the target, open", written, "once", "write", inside},
		{"of the target, opened anew", written, "again", "write", inside},
		{"of the target, for reading", written, "once", "read", inside},
		{"of the target, against a read lock", read, "again", "write", inside},
	} {
		p := c.from()
		p.ok("grab %s %s %s", c.path, c.how, c.kind)
		contenders[c.name] = p
	}
	for range cycles(t) {
		g := r.inject(h, r.data, "io error=EIO op=fsync ttl=2m")
		r.recover(g)
	}
	for name, p := range contenders {
		if got := p.ok("grabbed"); got != "got it 0 times (tried: true)" {
			t.Errorf("%s: %s", name, got)
		}
	}
	same(t, before, h.snapshot())
}

// A lock that would be lost to one who waits for it, or to one who comes between, is not lost: the graft fails in words.
func TestLockThatWouldBeLost(t *testing.T) {
	r := newRig(t)
	p := r.write("locked", "0123456789")
	h := r.start()
	h.ok("open w %s rdwr", p)
	h.ok("setlk w 2 5")
	before := h.snapshot()
	reader := r.startWith(binaries.holder)
	reader.ok("open k %s rdwr", p)
	waits := reader.begin("waitlk k 0 10")
	lockWaiters(t, reader.pid())
	inject := func() string {
		t.Helper()
		out, err := r.run("inject", "--pid", strconv.Itoa(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=2m")
		if err == nil {
			t.Fatalf("grafted: %s", out)
		}
		return err.Error()
	}
	if got, want := inject(), fmt.Sprintf("process %d (holder) waits for a read lock at %s, where process %d (holder) has a lock", reader.pid(), p, h.pid()); !strings.Contains(got, want) || !strings.Contains(got, "nothing was changed") {
		t.Errorf("inject: %s; want %s", got, want)
	}
	same(t, before, h.snapshot())
	h.ok("unlk w")
	if got := <-waits; got != "ok" {
		t.Fatalf("the reader's lock: %s", got)
	}
	reader.ok("unlk k")
	h.ok("setlk w 2 5")
	// A failure in the middle puts the write lock back.
	r.env = append(r.env, "FAULTGRAFT_TEST_FAIL_AT=swapper graft.locks")
	if got := inject(); !strings.Contains(got, "at step locks") {
		t.Errorf("inject: %s", got)
	}
	same(t, before, h.snapshot())
	// One that comes in the moment in which there are read locks: others get none for writing even then.
	r.env = append(r.env, "FAULTGRAFT_TEST_FAIL_AT=stop:swapper graft.locks")
	failed := make(chan string, 1)
	go func() { failed <- inject() }()
	swapper := r.awaitStopped()
	if swapper == 0 {
		t.Fatal("no swapper stopped")
	}
	reader.is("EAGAIN", "setlk k 0 10")
	reader.ok("rdlk k 0 10")
	if err := syscall.Kill(swapper, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := <-failed; !strings.Contains(got, "another process has a read lock where process") {
		t.Errorf("inject: %s", got)
	}
	h.is("ok 0123456789", "pread w 0 100")
	reader.is("EAGAIN", "setlk k 0 10") // the target has the read lock still
	reader.ok("unlk k")
	h.ok("setlk w 2 5")
	h.ok("stat /")
	same(t, before, h.snapshot())
}

// lockWaiters waits until a process waits for a lock.
func lockWaiters(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range strings.Split(string(b), "\n") {
			if f := strings.Fields(l); len(f) > 5 && f[1] == "->" && f[5] == strconv.Itoa(pid) {
				return
			}
		}
	}
	t.Fatalf("process %d waits for no lock", pid)
}
