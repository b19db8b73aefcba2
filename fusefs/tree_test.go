package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func tree(t *testing.T) (*nodeTable, func(dir *node, name string, kind uint32) *node) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		t.Fatal(err)
	}
	n := &nodeTable{}
	n.init(fd, &st, "/", nil)
	t.Cleanup(n.close)
	ino := uint64(1 << 40)
	return n, func(dir *node, name string, kind uint32) *node {
		fd, err := unix.Open("/", unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		ino++
		return n.enter(fd, &unix.Statx_t{Ino: ino, Mode: uint16(kind)}, dir, name)
	}
}

func TestNodeNumbersAreNotReused(t *testing.T) {
	n, enter := tree(t)
	a := enter(n.root, "a", unix.S_IFREG)
	n.forget(a.id, 1)
	if b := enter(n.root, "a", unix.S_IFREG); b.id == a.id || n.get(a.id) != nil {
		t.Error("a number came back")
	}
}

func TestPathsAfterRenames(t *testing.T) {
	n, enter := tree(t)
	d1, d2 := enter(n.root, "d1", unix.S_IFDIR), enter(n.root, "d2", unix.S_IFDIR)
	sub := enter(d1, "sub", unix.S_IFDIR)
	f := enter(sub, "f", unix.S_IFREG)
	g := enter(d2, "g", unix.S_IFREG)
	want := func(x *node, paths ...string) {
		t.Helper()
		if got := n.paths(x); fmt.Sprint(got) != fmt.Sprint(paths) {
			t.Errorf("%v, want %v", got, paths)
		}
	}
	want(f, "/d1/sub/f")
	n.renamed(d1, "sub", d2, "moved", 0)
	want(f, "/d2/moved/f")
	n.renamed(sub, "f", d2, "g", unix.RENAME_EXCHANGE)
	want(f, "/d2/g")
	want(g, "/d2/moved/f")
	n.bound(d1, "link", f)
	want(f, "/d2/g", "/d1/link")
	n.renamed(d2, "g", d1, "link", 0) // both are f: nothing happens
	want(f, "/d2/g", "/d1/link")
	n.unbound(d2, "g")
	n.unbound(d1, "link")
	want(f, "/d1/link")
	n.renamed(sub, "f", d1, "top", 0)
	n.forget(d1.id, 1) // its names cannot be told any more
	want(g, "/d1/top")
}

// The kernel's cache is asked to let go when too many descriptors are in use,
// and files stay reachable.
func TestNodesStayWithinTheBudget(t *testing.T) {
	if os.Geteuid() != 0 || unix.Access("/dev/fuse", unix.W_OK) != nil {
		t.Skip("needs root and /dev/fuse")
	}
	mount := MountForTest
	if mount == nil {
		t.Skip("no mount")
	}
	l, back, mnt := mount(t)
	const files = 600
	for i := range files {
		if err := os.WriteFile(filepath.Join(back, fmt.Sprint(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	had := nodeBudget.Swap(200)
	defer nodeBudget.Store(had)
	open, err := unix.Open(filepath.Join(mnt, "0"), unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(open) }()
	for range 3 {
		for i := range files {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(mnt, fmt.Sprint(i)), &st); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The kernel lets go beside the requests: what counts is that it ends up within the budget.
	for end := time.Now().Add(30 * time.Second); l.nodes.count() > 250; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d nodes with a budget of 200", l.nodes.count())
		}
		l.trim()
	}
	if to, _ := os.Readlink(magic(open)); to != filepath.Join(mnt, "0") {
		t.Errorf("an open file lost its name: %s", to)
	}
}

// MountForTest is set by the external tests.
var MountForTest func(t testing.TB) (l *Layer, back, mnt string)
