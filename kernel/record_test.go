package kernel

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sampleRecord(stack int64, frames ...uint64) []byte {
	b := make([]byte, recordSize+8*maxStack)
	put := binary.NativeEndian.PutUint64
	put(b[inTime:], 5)
	put(b[inHandle:], 6)
	put(b[inSeq:], 7)
	put(b[inThread:], 8<<32|9)
	put(b[inCgroup:], 10)
	copy(b[inComm:], "postgres")
	put(b[inStack:], uint64(stack))
	for i, f := range frames {
		put(b[recordSize+8*i:], f)
	}
	return b
}

func TestParseRecord(t *testing.T) {
	want := hit{time: 5, handle: 6, seq: 7, pid: 8, tid: 9, cgroup: 10, comm: "postgres", stack: []uint64{1, 2}}
	got, err := parseRecord(sampleRecord(16, 1, 2, 3))
	if d := cmp.Diff(want, got, cmp.AllowUnexported(hit{})); err != nil || d != "" {
		t.Error(d, err)
	}
	want.stack = nil
	for name, b := range map[string][]byte{"no stack": sampleRecord(-14), "without": sampleRecord(0)[:recordSize], "more than there is": sampleRecord(1 << 20)} {
		got, err := parseRecord(b)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(hit{})); err != nil || d != "" {
			t.Error(name, d, err)
		}
	}
	if _, err := parseRecord(make([]byte, recordSize-1)); err == nil {
		t.Error("a short record was read")
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add(sampleRecord(16, 1, 2))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseRecord(b)
		if err == nil && len(h.stack) > (len(b)-recordSize)/8 {
			t.Errorf("%d frames of %d bytes", len(h.stack), len(b))
		}
	})
}
