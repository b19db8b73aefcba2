package fusefs_test

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/policy"
)

// way is one way to read and write a file.
type way struct {
	name    string
	read    func(fd int, b []byte, off int64) (int, error)
	write   func(fd int, b []byte, off int64) (int, error)
	readOp  policy.Op
	inPages bool // reads are page fills, which cannot be short
	again   bool // what is short is asked for again
	async   bool // a short write is EIO (fuse_get_res_by_io in fs/fuse/file.c)
}

func waysOf(t *testing.T) []way {
	ring, ctx := newUring(t), newAIO(t)
	var p [2]int
	must(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	t.Cleanup(func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) })
	_, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, 1<<17)
	must(t, err)
	// out takes what was spliced into the pipe.
	out := func(b []byte, n int64, err error) (int, error) {
		if err != nil || n <= 0 {
			return 0, err
		}
		got := 0
		for got < int(n) {
			m, err := unix.Read(p[0], b[got:n])
			if err != nil {
				return got, err
			}
			got += m
		}
		return got, nil
	}
	return []way{
		{name: "pread", read: unix.Pread, write: unix.Pwrite, readOp: policy.OpRead},
		{name: "preadv", readOp: policy.OpRead,
			read:  func(fd int, b []byte, off int64) (int, error) { return unix.Preadv(fd, [][]byte{b[:9], b[9:]}, off) },
			write: func(fd int, b []byte, off int64) (int, error) { return unix.Pwritev(fd, [][]byte{b[:9], b[9:]}, off) }},
		{name: "AIO", readOp: policy.OpRead, async: true,
			read:  func(fd int, b []byte, off int64) (int, error) { return ctx.rw(aioRead, fd, b, off) },
			write: func(fd int, b []byte, off int64) (int, error) { return ctx.rw(aioWrite, fd, b, off) }},
		{name: "io_uring", readOp: policy.OpRead, again: true, async: true,
			read:  func(fd int, b []byte, off int64) (int, error) { return ring.rw(uringRead, fd, b, off) },
			write: func(fd int, b []byte, off int64) (int, error) { return ring.rw(uringWrite, fd, b, off) }},
		{name: "splice", readOp: policy.OpMmapRead, inPages: true,
			read: func(fd int, b []byte, off int64) (int, error) {
				n, err := unix.Splice(fd, &off, p[1], nil, len(b), 0)
				return out(b, n, err)
			},
			write: func(fd int, b []byte, off int64) (int, error) {
				if _, err := unix.Write(p[1], b); err != nil {
					return 0, err
				}
				n, err := unix.Splice(p[0], nil, fd, &off, len(b), 0)
				if rest := len(b) - int(max(n, 0)); rest > 0 {
					_, _ = unix.Read(p[0], make([]byte, rest))
				}
				return int(n), err
			}},
		{name: "sendfile", readOp: policy.OpMmapRead, inPages: true,
			read: func(fd int, b []byte, off int64) (int, error) {
				n, err := unix.Sendfile(p[1], fd, &off, len(b))
				return out(b, int64(n), err)
			}},
	}
}

// F6: whichever way a program reads and writes, it meets the faults of read and write.
func TestEveryWayIsFaulted(t *testing.T) {
	content := []byte(strings.Repeat("0123456789abcdef", 1<<11))
	for _, w := range waysOf(t) {
		t.Run(w.name, func(t *testing.T) {
			b := over(t, setup{direct: true})
			b.write("f", string(content))
			fd := b.open("f", unix.O_RDWR)
			buf := make([]byte, 8192)
			if n, err := w.read(fd, buf, 4096); err != nil || n != len(buf) || !bytes.Equal(buf, content[4096:][:n]) {
				t.Fatalf("without rules: %d %v", n, err)
			}
			event := func(a fusefs.Action, op policy.Op) fusefs.Event {
				t.Helper()
				events := b.recorded()
				if len(events) == 0 || events[0].Action != a || events[0].Op != op || uint64(len(events)) != b.Rules()[0].Fired {
					t.Fatalf("events %+v, want %s of %s", events, a, op)
				}
				return events[0]
			}
			b.faults(fault(t, "read", policy.IOFault{Errors: eio()}))
			if n, err := w.read(fd, buf, 0); err != unix.EIO {
				t.Errorf("failed read: %d %v", n, err)
			}
			event(fusefs.ActionError, w.readOp)
			b.faults(fault(t, "read", policy.IOFault{Latency: &policy.Latency{Base: 3 * time.Millisecond}}))
			start := time.Now()
			if n, err := w.read(fd, buf, 0); err != nil || n != len(buf) || time.Since(start) < 3*time.Millisecond {
				t.Errorf("delayed read: %d %v after %v", n, err, time.Since(start))
			}
			event(fusefs.ActionLatency, w.readOp)
			if !w.inPages {
				b.faults(fault(t, "read", policy.IOFault{Short: &policy.Short{Bytes: 5000}}))
				n, err := w.read(fd, buf, 0)
				if whole := w.again && n == len(buf); err != nil || n != 5000 && !whole {
					t.Errorf("short read: %d %v", n, err)
				}
				event(fusefs.ActionShort, w.readOp)
			}
			b.faults(fault(t, w.readOp.String(), policy.IOFault{Corrupt: &policy.Corrupt{Kind: policy.Random, Places: 4, Bytes: 100}}))
			if n, err := w.read(fd, buf, 0); err != nil || n != len(buf) || bytes.Equal(buf, content[:n]) {
				t.Errorf("corrupted read: %d %v", n, err)
			}
			event(fusefs.ActionCorrupt, w.readOp)
			if w.write == nil {
				return
			}
			data := bytes.Repeat([]byte("N"), 6000)
			b.faults(fault(t, "write", policy.IOFault{Errors: eio()}))
			if n, err := w.write(fd, data, 0); err != unix.EIO {
				t.Errorf("failed write: %d %v", n, err)
			}
			event(fusefs.ActionError, policy.OpWrite)
			b.faults(fault(t, "write", policy.IOFault{Lost: true}))
			if n, err := w.write(fd, data, 0); err != nil || n != len(data) {
				t.Errorf("lost write: %d %v", n, err)
			}
			event(fusefs.ActionLost, policy.OpWrite)
			if got := contentOf(t, b.under("f")); got != string(content) {
				t.Error("a write that failed or was lost changed the file")
			}
			b.faults(fault(t, "write", policy.IOFault{Torn: &policy.Torn{Kind: policy.Prefix, Unit: 4096}}))
			if n, err := w.write(fd, data, 100); err != nil || n != len(data) {
				t.Errorf("torn write: %d %v", n, err)
			}
			torn := event(fusefs.ActionTorn, policy.OpWrite)
			if got := strings.Count(contentOf(t, b.under("f")), "N"); int64(got) != torn.Bytes {
				t.Errorf("%d bytes of the torn write are in the file, event %+v", got, torn)
			}
			b.faults(fault(t, "write", policy.IOFault{Space: &policy.Space{Bytes: 1000}}))
			n, err := w.write(fd, data, int64(len(content)))
			short, refused := err == nil && n == 1000, w.async && err == unix.EIO
			if !short && !refused {
				t.Errorf("the write that crosses the limit: %d %v", n, err)
			}
			if e := event(fusefs.ActionNoSpace, policy.OpWrite); e.Bytes != 1000 {
				t.Errorf("event %+v", e)
			}
			if n, err := w.write(fd, data, int64(len(content))+1000); err != unix.ENOSPC {
				t.Errorf("a write to a full disk: %d %v", n, err)
			}
		})
	}
}

// The other operations of AIO and io_uring are those of the system calls.
func TestAsyncSyncAndStat(t *testing.T) {
	ring, ctx := newUring(t), newAIO(t)
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDWR)
	b.faults(fault(t, "fsync", policy.IOFault{Errors: eio()}))
	if _, err := ring.do(uringEntry{opcode: uringFsync, fd: int32(fd)}); err != unix.EIO {
		t.Errorf("fsync by io_uring: %v", err)
	}
	if _, err := ctx.rw(aioFsync, fd, nil, 0); err != unix.EIO {
		t.Errorf("fsync by AIO: %v", err)
	}
	b.faults(fault(t, "getattr", policy.IOFault{Path: "/data/f", Attr: &policy.Attr{Size: ref[uint64](99)}}))
	var x unix.Statx_t
	name := append([]byte(b.path("f")), 0)
	_, err := ring.do(uringEntry{opcode: uringStatx, fd: unix.AT_FDCWD, addr: uint64(uintptr(unsafe.Pointer(&name[0]))), len: unix.STATX_ALL, off: uint64(uintptr(unsafe.Pointer(&x)))})
	must(t, err)
	if x.Size != 99 {
		t.Errorf("statx by io_uring says %d bytes", x.Size)
	}
}

// An aborted connection lets whoever waits go, and the layer end.
func TestAbortWakesSleepers(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDONLY)
	r := fault(t, "read", policy.IOFault{Hang: true})
	r.Trigger.TTL = time.Hour
	b.faults(r)
	var results []chan error
	for range 100 {
		_, c := inThread(func() error { _, err := unix.Pread(fd, make([]byte, 1), 0); return err })
		results = append(results, c)
	}
	waitFor(t, "all asleep", func() bool { return b.Rules()[0].Fired == 100 })
	must(t, unix.Unmount(b.mnt, unix.MNT_FORCE|unix.MNT_DETACH))
	for _, c := range results {
		if err := within(t, c); err == nil {
			t.Error("a read of an aborted connection succeeded")
		}
	}
	ended := make(chan error, 1)
	go func() { b.Wait(); ended <- nil }()
	_ = within(t, ended)
	if e := b.recorded(); len(e) != 100 {
		t.Errorf("%d events", len(e))
	}
}

// Faults cut transfers where O_DIRECT would not let a program cut them.
func TestFaultsOfDirectIO(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", strings.Repeat("o", 1<<16))
	fd, err := unix.Open(b.path("f"), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err == unix.EINVAL {
		t.Skip("the file system below has no direct I/O")
	}
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	buf, err := unix.Mmap(-1, 0, 1<<14, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must(t, err)
	defer func() { _ = unix.Munmap(buf) }()
	copy(buf, bytes.Repeat([]byte("N"), len(buf)))
	b.faults(fault(t, "read+write", policy.IOFault{Short: &policy.Short{Bytes: 100}}))
	if n, err := unix.Pwrite(fd, buf, 0); err != nil || n != 100 {
		t.Errorf("short write: %d %v", n, err)
	}
	if n, err := unix.Pread(fd, buf, 0); err != nil || n != 100 || string(buf[:n]) != strings.Repeat("N", 100) {
		t.Errorf("short read: %d %v", n, err)
	}
	b.recorded()
	copy(buf, bytes.Repeat([]byte("T"), len(buf)))
	b.faults(fault(t, "write", policy.IOFault{Torn: &policy.Torn{Kind: policy.Sectors, Unit: 512}}))
	if n, err := unix.Pwrite(fd, buf, 0); err != nil || n != len(buf) {
		t.Errorf("torn write: %d %v", n, err)
	}
	if got, e := strings.Count(contentOf(t, b.under("f")), "T"), b.one(); int64(got) != e.Bytes || got == 0 {
		t.Errorf("%d bytes are in the file, event %+v", got, e)
	}
	b.faults(space(t, 1000))
	if n, err := unix.Pwrite(fd, buf, 1<<16); err != nil || n != 1000 {
		t.Errorf("the write that crosses the limit: %d %v", n, err)
	}
}
