package keeper

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"golang.org/x/sys/unix"
)

// Whatever a page of an inheritance says: each descriptor beside it is given to one layer, or it is refused. Numbers in it cost nothing.
func FuzzInheritance(f *testing.F) {
	for _, l := range [][]inheritedLayer{
		{},
		{{Graft: "g", Info: graft.LayerInfo{Path: "/data"}, FDs: 2}, {Graft: "h", Info: graft.LayerInfo{Path: "/data/<"}, FDs: 3}},
		{{Graft: "g", Info: graft.LayerInfo{Path: "/"}, FDs: 4}},
		{{Graft: "g", Info: graft.LayerInfo{Path: "/data"}, FDs: 1 << 62}},
		{{Graft: "g", Info: graft.LayerInfo{Path: "/data"}, FDs: 4}, {Graft: "h", Info: graft.LayerInfo{Path: "/x"}, FDs: -2}},
	} {
		b, err := json.Marshal(inheritance{Target: Target{PID: 1}, Layers: l})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(5))
		f.Add(b, uint8(4))
		f.Add(b[:len(b)/2], uint8(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, n uint8) {
		var page inheritance
		if json.Unmarshal(b, &page) != nil {
			return
		}
		fds := make([]int, n)
		for i := range fds {
			fds[i] = 1000 + i
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := page.sort(fds)
		runtime.ReadMemStats(&after)
		if most := uint64(1<<20 + 64*len(b)); after.TotalAlloc-before.TotalAlloc > most {
			t.Errorf("%d bytes are allocated for %d", after.TotalAlloc-before.TotalAlloc, len(b))
		}
		if err != nil {
			return
		}
		var given []int
		for _, l := range page.Layers {
			if l.layer.Backing < 0 || l.layer.Mount < 0 || l.Info.Root() && l.layer.Bottom < 0 {
				t.Errorf("%s: not all of its descriptors: %+v", l.Graft, l.layer)
			}
			for _, fd := range []int{l.layer.Backing, l.layer.Mount, l.layer.Bottom, l.layer.PeerGroup} {
				if fd >= 0 {
					given = append(given, fd)
				}
			}
		}
		if slices.Sort(given); !slices.Equal(given, fds) {
			t.Errorf("%v were there, given were %v", fds, given)
		}
	})
}

// What a keeper is told of its target comes whole, however long it is, and nobody changes it on the way.
func TestTargetIsToldWhole(t *testing.T) {
	want := Target{ID: "pid-1", PID: 1, StartTime: 7, Labels: map[string]string{}}
	for i := range 100 {
		want.Labels[fmt.Sprintf("%d<<<<", i)] = fmt.Sprintf("%04000d", i)
	}
	f, err := targetFile(want)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written to")
	}
	fd, err := unix.Dup(int(f.Fd())) // as the keeper has it: with the offset in common
	if err != nil {
		t.Fatal(err)
	}
	got, err := readTarget(fd)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v: %d labels, want %d", err, len(got.Labels), len(want.Labels))
	}
	if _, err := readTarget(fd); err == nil {
		t.Error("the descriptor is left open")
	}
}
