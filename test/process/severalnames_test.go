package process

import (
	"fmt"
	"os"
	"testing"
)

// Open files of one inode are put on the layer together, each by its name. Where a name leads nowhere any more, because something was mounted over its folder
// or it was given to another file, each descriptor gets its own description all the same.
func TestFilesOfOneInodeBySeveralNames(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, d := range []string{"hidden", "seen"} {
		if err := os.Mkdir(r.data+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.write("hidden/f", "0123456789")
	names := []string{"hidden/f", "seen/a", "hidden/f", "seen/b", "seen/a", "hidden/f"}
	for _, n := range []string{"seen/a", "seen/b"} {
		if err := os.Link(r.data+"/hidden/f", r.data+"/"+n); err != nil {
			t.Fatal(err)
		}
	}
	h := r.start()
	for i, n := range names {
		h.ok("open f%d %s/%s rdwr", i, r.data, n)
		h.ok("lseek f%d %d", i, i)
	}
	h.inside("mount", "-t", "tmpfs", "over", r.data+"/hidden")
	before := h.snapshot()
	for range 2 {
		g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
		for i := range names {
			h.is("EIO", "fsync f%d", i)
			h.is(fmt.Sprintf("ok %d", i), "read f%d 1", i)
			h.ok("lseek f%d %d", i, i)
		}
		if _, err := r.run("update", g.ID, "io error=EIO op=read+fsync ttl=5m"); err != nil { // moves what bypasses the layer
			t.Fatal(err)
		}
		for i := range names {
			h.is("EIO", "read f%d 1", i)
		}
		r.recover(g)
		for i := range names {
			h.is(fmt.Sprintf("ok %d", i), "read f%d 1", i)
			h.ok("lseek f%d %d", i, i)
		}
	}
	same(t, before, h.snapshot())
}
