package process

import (
	"os"
	"strconv"
	"testing"
)

// cycles is how often a graft comes and goes in tests of races: FAULTGRAFT_TEST_CYCLES, or a number that does not take minutes.
func cycles(t *testing.T) int {
	t.Helper()
	s := os.Getenv("FAULTGRAFT_TEST_CYCLES")
	if s == "" {
		return 15
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
