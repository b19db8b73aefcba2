package keeper

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// What a server leaves is read elsewhere as it was written last; what is damaged, or something else, is refused.
func TestEstate(t *testing.T) {
	f, err := newEstateFile()
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	open := func() (*estateFile, error) {
		fds, err := dupAll(f.fd)
		if err != nil {
			t.Fatal(err)
		}
		return openEstateFile(fds[0])
	}
	other, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	if e, err := other.read(); err != nil || len(e.Servers) != 0 {
		t.Errorf("before it was written: %+v, %v", e, err)
	}
	for n := range 5 { // to the one place and to the other
		e := estate{Target: Target{ID: "x", PID: n}, Servers: []estateServer{{PID: n, Holder: n + 1}}}
		for i := range n {
			e.Layers = append(e.Layers, estateLayer{Call: serveCall{Layer: strings.Repeat("g", i+1)}, State: []int{3, 4}, Keep: []int{5}})
		}
		if err := f.write(e); err != nil {
			t.Fatal(err)
		}
		got, err := other.read()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(e, got); d != "" {
			t.Error(d)
		}
		if n > 0 && (got.layer("g") == nil || got.layer("h") != nil) {
			t.Errorf("layer g: %v, layer h: %v", got.layer("g"), got.layer("h"))
		}
	}
	long := estate{}
	for range 500 {
		long.Layers = append(long.Layers, estateLayer{Call: serveCall{Layer: strings.Repeat("<&>", 4<<10)}, Keep: []int{5}})
	}
	if err := f.write(long); err != nil {
		t.Errorf("500 layers with long paths: %v", err)
	}
	if got, err := other.read(); err != nil || cmp.Diff(long, got) != "" {
		t.Errorf("500 layers with long paths, read: %v", err)
	}
	long.Layers = long.Layers[:4]
	if err := f.write(long); err != nil {
		t.Fatal(err)
	}
	if err := f.write(estate{OOMScoreAdj: strings.Repeat("x", estateRoom)}); err == nil {
		t.Error("more than there is room for was written")
	}
	if e, err := other.read(); err != nil || len(e.Layers) != 4 {
		t.Errorf("after what was refused: %+v, %v", e, err)
	}
	for _, damage := range []uint64{estateRoom + 1, 3, estateSecond | 1} {
		binary.NativeEndian.PutUint64(f.mem[8:], damage)
		if _, err := other.read(); err == nil {
			t.Errorf("length %#x: no error", damage)
		}
	}
	binary.NativeEndian.PutUint64(f.mem, 1)
	if _, err := open(); err == nil {
		t.Error("what is no estate was opened")
	}
	fd, err := unix.MemfdCreate("small", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openEstateFile(fd); err == nil { // closes it
		t.Error("an empty file was opened")
	}
}
