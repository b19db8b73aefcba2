package tracer

import (
	"encoding/binary"
	"os"
	"testing"
)

// The layout of our own memory, read from its text as any other would be.
func TestLayout(t *testing.T) {
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	b, err := layoutOf(text, 77, 5)
	if err != nil || len(b) != 104 { // sizeof(struct prctl_mm_map)
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	u := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	if u(0) == 0 || u(0) >= u(1) || u(5) != 77 || u(7) > u(8) || binary.LittleEndian.Uint32(b[100:]) != 5 {
		t.Errorf("%x", b)
	}
}

func FuzzLayout(f *testing.F) {
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("1 (a) b) R 1"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if b, err := layoutOf(text, 1, 2); err == nil && len(b) != 104 {
			t.Errorf("%d bytes", len(b))
		}
	})
}
