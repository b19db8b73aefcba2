package tracer

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What makes processes stand still together.
func TestJoinHolders(t *testing.T) {
	const a, b = 100, 200
	thing := func(kind Kind, ino uint64, flags int, pids ...int) *item {
		it := &item{Description: Description{Kind: kind, Dev: 1, Ino: ino, Mode: unix.S_IFREG, Flags: flags}}
		for _, pid := range pids {
			it.Holders = append(it.Holders, Object{PID: pid, Kind: kind})
		}
		return it
	}
	locked := thing(Descriptor, 1, unix.O_RDONLY, a)
	locked.locked = true
	for _, c := range []struct {
		name     string
		items    []*item
		together bool
	}{
		{"nothing in common", []*item{thing(Descriptor, 1, unix.O_RDWR, a), thing(Descriptor, 2, unix.O_RDWR, b)}, false},
		{"one file, opened by each", []*item{thing(Descriptor, 1, unix.O_RDWR, a), thing(Descriptor, 1, unix.O_RDWR, b)}, false},
		{"one description", []*item{thing(Descriptor, 1, unix.O_RDONLY, a, b)}, true},
		{"a lock of one of them", []*item{locked, thing(Descriptor, 1, unix.O_RDWR, b)}, true},
		{"a lock at another file", []*item{locked, thing(Descriptor, 2, unix.O_RDWR, b)}, false},
		{"one maps what the other may write", []*item{thing(Map, 1, unix.O_RDONLY, a), thing(Descriptor, 1, unix.O_WRONLY, b)}, true},
		{"both map what nobody may write", []*item{thing(Map, 1, unix.O_RDONLY, a, b)}, false},
		{"one maps what the other has by its path only", []*item{thing(Map, 1, unix.O_RDONLY, a), thing(Descriptor, 1, unix.O_PATH|unix.O_RDWR, b)}, false},
		{"both have a working directory", []*item{thing(Cwd, 1, unix.O_PATH, a, b)}, false},
	} {
		u := union{}
		u.joinHolders(c.items)
		if got := u.root(a) == u.root(b); got != c.together {
			t.Errorf("%s: together %v", c.name, got)
		}
	}
}
