package process

import (
	"strings"
	"testing"
)

// A thread may have a descriptor table of its own, and with it POSIX locks of its own at files that the others have open,
// too. Each table keeps its locks, and no other gets them.
func TestLocksOfAThreadWithItsOwnTable(t *testing.T) {
	r := newRig(t)
	file, main := r.write("f", strings.Repeat("0123456789abcdef", 1024)), r.write("main", "0123456789")
	h, reader := r.start(), r.startWith(binaries.holder)
	h.ok("open a %s rdwr", file)
	h.ok("open m %s rdwr", main)
	h.ok("setlk a 2 5")
	h.ok("setlk m 2 5") // the copy of this descriptor has no lock
	h.ok("apart a 20 5")
	before := h.snapshot()
	reader.ok("open k %s rdwr", file)
	reader.ok("open m %s rdwr", main)
	held := func(when string) {
		t.Helper()
		t.Log(when)
		reader.is("EAGAIN", "setlk k 6 1")
		reader.is("EAGAIN", "setlk k 20 1")
		reader.is("EAGAIN", "setlk m 2 1")
		for _, free := range []string{"k 0 2", "k 7 13", "k 25 10", "m 7 10"} {
			reader.ok("setlk %s", free)
		}
		reader.ok("unlk k")
		reader.ok("unlk m")
	}
	held("before")
	g := r.inject(h, r.data, "io error=EACCES op=mkdir ttl=5m")
	held("grafted")
	read := r.update(g, "io error=EIO op=read+getlk path="+r.data+"/* ttl=5m")
	if len(read.Report.Skipped) > 0 || len(read.Report.Swapped) < 4 {
		t.Errorf("moved %+v, left %+v", read.Report.Swapped, read.Report.Skipped)
	}
	h.is("EIO", "pread a 0 10")
	held("moved")
	if l := r.list(); len(l) != 1 || len(l[0].Rules) != 1 || l[0].Rules[0].Matched != 1 {
		t.Errorf("what the move asked for is counted: %+v", l)
	}
	r.recover(g)
	held("recovered")
	same(t, before, h.snapshot())
	h.ok("together")
	reader.is("EAGAIN", "setlk k 6 1")
	reader.is("EAGAIN", "setlk m 2 1")
	reader.ok("setlk k 20 1")
	h.ok("close a")
	reader.ok("setlk k 6 1")
}
