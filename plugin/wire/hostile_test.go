package wire

import (
	"encoding/binary"
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// talk sends bytes, with descriptors on the first, to a connection that serves, and ends it.
func talk(t testing.TB, b []byte, fds []int) {
	t.Helper()
	sv, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := FromDescriptor(sv[0])
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Serve(func(r *Request) (any, []int, error) {
			CloseAll(r.FDs)
			var v any
			return v, nil, r.Decode(&v)
		})
		_ = c.Close()
	}()
	peer := os.NewFile(uintptr(sv[1]), "peer")
	go func() { _, _ = io.Copy(io.Discard, peer) }() // the answers
	if len(b) > 0 {
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		n, err := unix.SendmsgN(sv[1], b, oob, nil, unix.MSG_NOSIGNAL)
		if err == nil && n < len(b) {
			_, _ = peer.Write(b[n:])
		}
	}
	_ = unix.Shutdown(sv[1], unix.SHUT_WR)
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("it waits for more")
	}
	_ = peer.Close()
}

func message(body string) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// held counts descriptors of this process that lead to a file.
func held(t testing.TB, path string) (n int) {
	t.Helper()
	links, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if fd, err := strconv.Atoi(l.Name()); err == nil {
			if to, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err == nil && to == path {
				n++
			}
		}
	}
	return n
}

// FuzzServe: whatever bytes and descriptors come, a connection serves or ends, and keeps none of the descriptors.
func FuzzServe(f *testing.F) {
	for _, b := range [][]byte{
		nil, {1}, {0, 0, 0, 0}, {255, 255, 255, 255}, {0, 0, 0, 4, 1}, message(""), message("{}"), message("[]"), message("null"),
		message(`{"method":"m","body":1,"fds":1}`), message(`{"method":"m","fds":-1}`), message(`{"fds":999999999}`), message(`{"errno":-5}`),
		append(message(`{"method":"a"}`), message(`{"method":"b","body":{"a":[1,2]}}`)...),
	} {
		f.Add(b, uint8(0))
		f.Add(b, uint8(1))
		f.Add(b, uint8(253))
	}
	f.Fuzz(func(t *testing.T, b []byte, n uint8) {
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		fds := make([]int, min(int(n), maxDescriptors))
		for i := range fds {
			fds[i] = int(file.Fd())
		}
		talk(t, b, fds)
		if have := held(t, file.Name()); have != 1 {
			t.Errorf("%d descriptors are left of %d", have-1, len(fds))
		}
	})
}

// A message that announces more than it brings costs what it brings.
func TestAnnouncedIsNotAllocated(t *testing.T) {
	announced := binary.LittleEndian.AppendUint32(nil, maxMessage)
	if n := testing.AllocsPerRun(1, func() { talk(t, announced, nil) }); n > 1000 {
		t.Errorf("%v allocations", n)
	}
	result := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			talk(b, announced, nil)
		}
	})
	if per := result.AllocedBytesPerOp(); per > 4<<20 {
		t.Errorf("%d bytes for a message of none", per)
	}
}
