package tracer

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzReply has anything come from the target as reply to a batch, and lie in its memory: results are those of calls that
// were made, and files have numbers that descriptors can have.
func FuzzReply(f *testing.F) {
	le := binary.LittleEndian
	control := func(size uint64, fds ...uint32) []byte {
		b := le.AppendUint64(nil, size)
		b = le.AppendUint64(b, unix.SOL_SOCKET|unix.SCM_RIGHTS<<32)
		for _, fd := range fds {
			b = le.AppendUint32(b, fd)
		}
		return b
	}
	f.Add(le.AppendUint64(nil, 0), uint8(3), bytes.Repeat([]byte{7}, 300), control(24, 5, 6))
	f.Add(le.AppendUint64(nil, 1), uint8(1), []byte{}, control(20, 5))
	f.Add(le.AppendUint64(nil, 2), uint8(1), []byte{}, control(16))
	f.Add(le.AppendUint64(nil, 1<<31), uint8(0), []byte{}, control(1<<63, 1))
	f.Add(le.AppendUint64(nil, ^uint64(0)), uint8(200), []byte{1}, control(20, 1<<31))
	f.Fuzz(func(t *testing.T, msg []byte, calls uint8, memory, control []byte) {
		if len(msg) < 8 {
			return // message reads on
		}
		left, ok := leftIn(msg)
		if ok && left <= int(calls) { // else run refuses it
			b := &batch{data: make([]byte, 32), calls: make([]call, calls)}
			image := make([]byte, len(b.data)+callBytes*len(b.calls))
			copy(image, memory)
			begun := b.results(image, left)
			if begun < 0 || begun > len(b.calls) || left > 0 && begun == 0 || !bytes.Equal(b.data, image[:len(b.data)]) {
				t.Errorf("%d of %d calls were begun, %d are left", begun, calls, left)
			}
			for i, c := range b.calls {
				want := int64(0)
				if i < begun {
					want = int64(le.Uint64(image[len(b.data)+callBytes*(i+1)-8:]))
				}
				if c.ret != want {
					t.Errorf("call %d gives %d instead of %d", i, c.ret, want)
				}
			}
		}
		if ok && left < 0 {
			t.Errorf("%d calls are left", left)
		}
		n := max(len(control)-unix.CmsgLen(0), 0) / 4
		if len(control) < unix.CmsgLen(0) || n == 0 {
			return // there is room for what was sent
		}
		fds, err := received(control, n)
		if err == nil && len(fds) != n || err != nil && fds != nil {
			t.Errorf("%d files of %d, %v", len(fds), n, err)
		}
		for i, fd := range fds {
			if fd < 0 || int32(fd) != int32(le.Uint32(control[unix.CmsgLen(4*i):])) {
				t.Errorf("file %d is descriptor %d", i, fd)
			}
		}
	})
}

// FuzzResidue: a page of a target may look in any way like one with code of a dead tracer. What is taken for that lies in the page, and
// the search comes to an end.
func FuzzResidue(f *testing.F) {
	code := parasiteCode
	f.Add([]byte{}, uint16(0))
	f.Add(code[:min(len(code), int(pageSize))], uint16(0))
	f.Add(append(append(make([]byte, 100), code...), code...), uint16(50))
	for _, n := range []uint64{0, 8, uint64(paraHeader), uint64(len(code)) - 1, uint64(len(code)) + 1, pageSize, 1 << 63, ^uint64(0)} {
		b := bytes.Clone(code)
		binary.LittleEndian.PutUint64(b[paraHeader-8:], n)
		f.Add(b, uint16(0))
		b = bytes.Clone(code)
		binary.LittleEndian.PutUint64(b[len(b)-8*wordCount+8*wordFini:], n)
		f.Add(b, uint16(0))
	}
	f.Fuzz(func(t *testing.T, page []byte, at uint16) {
		const base = 0x7fff_0000_0000
		from := min(int(at), len(page))
		for {
			r, ok := nextResidue(page, base, from)
			if !ok {
				return
			}
			if r.start < base+uint64(from) || r.end <= r.start || r.end > base+uint64(len(page)) || r.fini != 0 && !r.contains(r.fini) {
				t.Fatalf("code from %x to %x, with its end at %x, in a page of %d bytes from %d on", r.start, r.end, r.fini, len(page), from)
			}
			from = int(r.end - base)
		}
	})
}
