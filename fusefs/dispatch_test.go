package fusefs

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// kernelEnd is the other side of a device that is a socket pair: what a test says there, the kernel says in real life.
type kernelEnd struct {
	t  testing.TB
	fd int
}

// message makes the bytes of one request.
func message(op uint32, node, unique uint64, body []byte) []byte {
	b := make([]byte, 40, 40+len(body))
	binary.NativeEndian.PutUint32(b[0:], uint32(40+len(body)))
	binary.NativeEndian.PutUint32(b[4:], op)
	binary.NativeEndian.PutUint64(b[8:], unique)
	binary.NativeEndian.PutUint64(b[16:], node)
	return append(b, body...)
}

func (k *kernelEnd) ask(b []byte) {
	k.t.Helper()
	if _, err := unix.Write(k.fd, b); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kernelEnd) answer() []byte {
	k.t.Helper()
	b := make([]byte, 1<<16)
	n, err := unix.Read(k.fd, b)
	if err != nil {
		k.t.Fatal(err)
	}
	return b[:n]
}

// overSocket makes a layer over a directory with one file, and completes the handshake. Nothing reads requests.
func overSocket(t testing.TB) *reader {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(Options{Device: pair[0], Root: root, Prefix: "/data"})
	if err != nil {
		t.Fatal(err)
	}
	k := &kernelEnd{t: t, fd: pair[1]}
	init := make([]byte, unsafe.Sizeof(fuse.InitIn{})-40)
	binary.NativeEndian.PutUint32(init[0:], 7)
	binary.NativeEndian.PutUint32(init[4:], 45)
	k.ask(message(opInit, 0, 2, init))
	d := &device{fd: pair[0], layer: l, log: l.o.Logger, all: map[*reader]struct{}{}, spare: make(chan *reader, maxSpare), ended: make(chan struct{})}
	d.proto = fuse.NewProtocolServer(l, l.protocolOptions())
	l.device = d
	l.notify = &notifier{device: d, log: l.o.Logger}
	r, err := d.newReader()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.handshake(r); err != nil {
		t.Fatal(err)
	}
	if a := k.answer(); binary.NativeEndian.Uint32(a[4:]) != 0 {
		t.Fatalf("INIT: %x", a)
	}
	t.Cleanup(func() {
		r.free()
		l.finish()
		_ = unix.Close(pair[1])
	})
	return r
}

// put places a request where it would have been read to.
func (r *reader) put(b []byte) int { return copy(r.in, b) }

// FuzzRequest takes any bytes for a request. None may make the layer panic, and
// every answer is for the request and as long as it says. Names that the kernel
// never sends, with a slash, are left out: they would leave the test's directory.
func FuzzRequest(f *testing.F) {
	for op := range uint32(60) {
		f.Add(op, uint64(1), []byte("file\x00"))
		f.Add(op, uint64(1), bytes.Repeat([]byte{0}, 64))
		f.Add(op, uint64(2), append(bytes.Repeat([]byte{1}, 40), "name\x00other\x00"...))
	}
	f.Fuzz(func(t *testing.T, op uint32, node uint64, body []byte) {
		if op == opInit || bytes.ContainsAny(body, "/") || bytes.Contains(body, []byte("..")) || len(body) > 4096 {
			t.Skip()
		}
		r := overSocket(t)
		name := append([]byte("file"), 0)
		for _, b := range [][]byte{ // a node 2 and a handle 1, which cannot write
			message(opLookup, 1, 4, name),
			message(opOpen, 2, 6, make([]byte, 8)),
			message(op, node, 8, body),
		} {
			n := r.put(b)
			answer := r.guarded(n)
			if answer == nil {
				continue
			}
			if len(answer) < headerSize || binary.NativeEndian.Uint32(answer) != uint32(len(answer)) || !bytes.Equal(answer[8:16], b[8:16]) {
				t.Errorf("opcode %d: answer %x", op, answer)
			}
			if status := int32(binary.NativeEndian.Uint32(answer[4:])); status > 0 || status < -511 {
				t.Errorf("opcode %d: status %d", op, status)
			}
		}
	})
}

// A request that is cut off is refused, whatever its kind.
func TestShortRequests(t *testing.T) {
	r := overSocket(t)
	for op, size := range fixed {
		if size <= 40 || op == opInit {
			continue
		}
		n := r.put(message(uint32(op), 1, 9, make([]byte, int(size)-41)))
		if a := r.guarded(n); op != opForget && op != opBatchForget && int32(binary.NativeEndian.Uint32(a[4:])) != -int32(unix.EIO) {
			t.Errorf("opcode %d: %x", op, a)
		}
	}
}
