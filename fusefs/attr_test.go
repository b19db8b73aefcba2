package fusefs_test

import (
	"bytes"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/policy"
)

func ref[T any](v T) *T { return &v }

// F7: what attr overrides is what a program sees, each time, by every call; the rest is true, and all of it is once the rule is gone.
func TestAttr(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	b.write("g", "content")
	must(t, os.Mkdir(b.under("d"), 0o755))
	fd := b.open("f", unix.O_RDWR)
	var truth, other, st unix.Stat_t
	must(t, unix.Stat(b.path("f"), &truth)) // in the kernel's cache
	must(t, unix.Stat(b.path("g"), &other))
	at := time.Unix(1_000_000_000, 5)
	b.faults(fault(t, "getattr", policy.IOFault{Path: "/data/{f,d}", Attr: &policy.Attr{
		Ino: ref[uint64](4711), Size: ref[uint64](1 << 40), Blocks: ref[uint64](99), Perm: ref[uint32](0o4000), Nlink: ref[uint32](17),
		UID: ref[uint32](1234), GID: ref[uint32](5678), Atime: &at, Mtime: ref(at.Add(time.Second)), Ctime: ref(at.Add(2 * time.Second)),
	}}))
	want := unix.Stat_t{Dev: truth.Dev, Ino: 4711, Nlink: 17, Mode: unix.S_IFREG | 0o4000, Uid: 1234, Gid: 5678, Size: 1 << 40, Blksize: truth.Blksize, Blocks: 99,
		Atim: unix.Timespec{Sec: 1_000_000_000, Nsec: 5}, Mtim: unix.Timespec{Sec: 1_000_000_001, Nsec: 5}, Ctim: unix.Timespec{Sec: 1_000_000_002, Nsec: 5}}
	calls := 0
	for range 3 {
		for name, call := range map[string]func() error{
			"stat":  func() error { return unix.Stat(b.path("f"), &st) },
			"lstat": func() error { return unix.Lstat(b.path("f"), &st) },
			"fstat": func() error { return unix.Fstat(fd, &st) },
		} {
			st = unix.Stat_t{}
			must(t, call())
			if st != want {
				t.Errorf("%s: %+v, want %+v", name, st, want)
			}
			calls++
		}
	}
	var x unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, b.path("f"), 0, unix.STATX_ALL, &x))
	calls++
	if x.Size != 1<<40 || x.Ino != 4711 || x.Mask&unix.STATX_BTIME == 0 || x.Btime.Sec == 0 {
		t.Errorf("statx: %+v", x)
	}
	// A listing must not bring the truth into any cache.
	_ = names(t, b.mnt)
	must(t, unix.Stat(b.path("f"), &st))
	calls++
	if st != want {
		t.Errorf("after a listing: %+v", st)
	}
	must(t, unix.Stat(b.path("d"), &st))
	calls++
	if st.Ino != 4711 || st.Mode != unix.S_IFDIR|0o4000 {
		t.Errorf("directory: %+v", st)
	}
	// F12: opening, seeking, listing and walking are no stat.
	must(t, openClose(b.path("f"), unix.O_RDONLY, 0))
	if end, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil || end != 7 {
		t.Errorf("the end is at %d, %v", end, err)
	}
	events := b.recorded()
	if len(events) != calls || b.Rules()[0].Fired != uint64(calls) {
		t.Errorf("%d events, fired %d, the program asked %d times", len(events), b.Rules()[0].Fired, calls)
	}
	if e := events[0]; e.Action != fusefs.ActionAttr || e.Op != policy.OpGetattr || e.Errno != 0 {
		t.Errorf("event %+v", e)
	}
	must(t, unix.Stat(b.path("g"), &st))
	if st != other {
		t.Errorf("another file: %+v", st)
	}
	b.faults()
	must(t, unix.Stat(b.path("f"), &st))
	st.Atim, truth.Atim = unix.Timespec{}, unix.Timespec{}
	if st != truth {
		t.Errorf("without the rule: %+v, want %+v", st, truth)
	}
}

// Several rules: each attribute is the first rule's that has it, under its trigger.
func TestAttrRulesMerge(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	first := fault(t, "getattr", policy.IOFault{Path: "/data/f", Attr: &policy.Attr{Size: ref[uint64](1)}})
	first.Trigger.Every = 2
	b.faults(first, fault(t, "getattr", policy.IOFault{Path: "/data/f", Attr: &policy.Attr{Size: ref[uint64](2), Nlink: ref[uint32](9)}}))
	for _, want := range []int64{1, 2, 1, 2} {
		var st unix.Stat_t
		must(t, unix.Stat(b.path("f"), &st))
		if st.Size != want || st.Nlink != 9 {
			t.Errorf("size %d links %d, want %d and 9", st.Size, st.Nlink, want)
		}
	}
}

// A size that is not the file's neither cuts nor grows it: not what is read, appended, or changed through a map.
func TestAttrSizeSparesTheData(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	for _, size := range []uint64{10, 5000, 1 << 30} {
		b := over(t, setup{direct: true})
		b.write("f", string(content))
		want := bytes.Clone(content)
		fd := b.open("f", unix.O_RDWR)
		mem, err := unix.Mmap(fd, 0, len(content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		must(t, poke(mem[9000:], 'X')) // a dirty page, beyond the smaller sizes
		want[9000] = 'X'
		b.faults(fault(t, "getattr", policy.IOFault{Path: "/data/f", Attr: &policy.Attr{Size: &size}}))
		stat := func() {
			t.Helper()
			var st unix.Stat_t
			must(t, unix.Stat(b.path("f"), &st))
			if uint64(st.Size) != size {
				t.Errorf("size %d, want %d", st.Size, size)
			}
		}
		stat()
		must(t, poke(mem[20000:], 'Y'))
		want[20000] = 'Y'
		must(t, faultIn(mem[len(content)-4096:][:4096]))
		must(t, unix.Msync(mem, unix.MS_SYNC))
		stat()
		buf := make([]byte, len(content)+100)
		if n, err := unix.Pread(fd, buf, 0); err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("size %d: read %d bytes, %v", size, n, err)
		}
		app := b.open("f", unix.O_WRONLY|unix.O_APPEND)
		stat()
		_, err = unix.Write(app, []byte("end"))
		must(t, err)
		want = append(want, "end"...)
		must(t, unix.Munmap(mem))
		if got := contentOf(t, b.under("f")); got != string(want) {
			t.Errorf("size %d: the file has %d bytes, want %d", size, len(got), len(want))
		}
	}
}
