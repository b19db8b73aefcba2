package fusefs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// BenchmarkState measures what an operation costs in the server, without the kernel's part, when the state of the layer is
// kept and when it is not.
func BenchmarkState(b *testing.B) {
	for _, kept := range []bool{false, true} {
		name := "not kept"
		if kept {
			name = "kept"
		}
		b.Run(name, func(b *testing.B) {
			l := unserved(b, kept)
			at := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
			var found fuse.EntryOut
			look := func() {
				if st := l.Lookup(nil, &at, "f", &found); !st.Ok() {
					b.Fatal(st)
				}
			}
			b.Run("lookup of a new object, and forget", func(b *testing.B) {
				for b.Loop() {
					look()
					l.Forget(found.NodeId, 1)
				}
			})
			look()
			b.Run("lookup", func(b *testing.B) {
				for b.Loop() {
					look()
				}
			})
			b.Run("open and close", func(b *testing.B) {
				for b.Loop() {
					in, out := fuse.OpenIn{InHeader: fuse.InHeader{NodeId: found.NodeId}, Flags: unix.O_RDONLY}, fuse.OpenOut{}
					if st := l.Open(nil, &in, &out); !st.Ok() {
						b.Fatal(st)
					}
					l.Release(nil, &fuse.ReleaseIn{InHeader: in.InHeader, Fh: out.Fh})
				}
			})
			b.Run("slot of an open file", func(b *testing.B) {
				h := newHandle(-1, 0)
				h.node = l.nodes.get(found.NodeId)
				for b.Loop() {
					l.handles.kept.handle(h)
					l.handles.kept.dropHandle(h)
				}
			})
			b.Run("slots of a node and its name", func(b *testing.B) {
				n := &node{id: 99, locks: newLockTable(nil)}
				for b.Loop() {
					s := l.nodes.kept.node(n)
					k := l.nodes.kept.name(l.nodes.root, "some-name", n)
					l.nodes.kept.dropText(k)
					l.nodes.kept.dropNode(s)
				}
			})
		})
	}
}

// unserved is a layer over a directory with a file f that is not mounted anywhere.
func unserved(t testing.TB, kept bool) *Layer {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	device, err := unix.MemfdCreate("no-device", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Device: device, Root: root, Prefix: "/data"}
	if kept {
		if o.State, err = NewState(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if kept {
			if err := o.State.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return l
}
