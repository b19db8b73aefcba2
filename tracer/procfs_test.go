package tracer

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseFdInfo(t *testing.T) {
	text := "pos:\t4096\nflags:\t02100002\nmnt_id:\t31\nino:\t5\nlock:\t1: POSIX  ADVISORY  WRITE 123 fe:00:12 10 29\nlock:\t2: POSIX  ADVISORY  READ  123 fe:00:12 40 EOF\n" +
		"lock:\t3: FLOCK  ADVISORY  WRITE 123 fe:00:12 0 EOF\nlock:\t4: LEASE  ACTIVE    READ  123 fe:00:12 0 EOF\n"
	got, err := parseFdInfo([]byte(text))
	want := fdInfo{pos: 4096, flags: 0o2100002, mountID: 31, lease: true, locks: []Lock{{unix.F_WRLCK, 10, 20}, {unix.F_RDLCK, 40, 0}}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(fdInfo{})); err != nil || d != "" {
		t.Error(err, d)
	}
	for _, bad := range []string{"", "pos:\t1\n", "flags:\t9\n", "flags:\t0\npos:\tx\n", "flags:\t0\nlock:\t1: POSIX\n", "flags:\t0\nlock:\t1: POSIX A WRITE 1 0:0:1 9 3\n"} {
		if _, err := parseFdInfo([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestParseMaps(t *testing.T) {
	got, err := parseMaps([]byte("7f0000001000-7f0000003000 rw-s 00002000 fe:10 77                         /a b/c (deleted)\n5000-6000 ---p 00000000 00:00 0 \n"))
	want := []mapLine{{start: 0x7f0000001000, end: 0x7f0000003000, offset: 0x2000, prot: unix.PROT_READ | unix.PROT_WRITE, shared: true, dev: unix.Mkdev(0xfe, 0x10), ino: 77, path: "/a b/c (deleted)"},
		{start: 0x5000, end: 0x6000}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(mapLine{})); err != nil || d != "" {
		t.Error(err, d)
	}
	for _, bad := range []string{"x\n", "1-1 rw-p 0 0:0 0\n", "2-1 rw-p 0 0:0 0\n", "1-2 rw-p 0 00 0\n", "1-2 rw 0 0:0 0\n"} {
		if _, err := parseMaps([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestParseOwnFiles(t *testing.T) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := parseMaps(maps); err != nil || len(m) < 5 {
		t.Error(len(m), err)
	}
	if s, err := readStatus(os.Getpid()); err != nil || s.ppid != os.Getppid() || s.tracer != 0 {
		t.Error(s, err)
	}
	var want unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
		t.Fatal(err)
	}
	if l, err := fileLimit(os.Getpid()); err != nil || l != want {
		t.Error(l, want, err)
	}
	if isKernelThread(os.Getpid()) || !isKernelThread(2) {
		t.Error("kernel threads")
	}
}

func FuzzFdInfo(f *testing.F) {
	f.Add([]byte("pos:\t0\nflags:\t0100002\nmnt_id:\t25\nlock:\t1: POSIX  ADVISORY  WRITE 1 00:1b:33 0 EOF\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		fi, err := parseFdInfo(b)
		for _, l := range fi.locks {
			if err == nil && l.Len < 0 {
				t.Error(l)
			}
		}
	})
}

func FuzzMaps(f *testing.F) {
	f.Add([]byte("7f0000001000-7f0000003000 rw-s 00002000 fe:10 77   /a b/c (deleted)\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, err := parseMaps(b)
		for _, l := range lines {
			if err == nil && l.end <= l.start {
				t.Error(l)
			}
		}
		_ = parseMapFlags(b)
	})
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte("Name:\tcat\nState:\tR (running)\nTracerPid:\t0\nCapEff:\t000001ffffffffff\nVmLck:\t       0 kB\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseStatus(b)
		_, _ = parseSyscall(b)
		_, _ = parseStatFlags(b)
		_, _ = parseFileLimit(b)
	})
}

// The bytes that are embedded are those of the source beside them.
func TestParasiteIsBuiltFromItsSource(t *testing.T) {
	for arch, as := range map[string]string{"amd64": "x86_64-linux-gnu-as", "arm64": "aarch64-linux-gnu-as"} {
		t.Run(arch, func(t *testing.T) {
			if _, err := exec.LookPath(as); err != nil {
				t.Skipf("%s is not installed: apt install binutils-%s", as, strings.TrimSuffix(as, "-as"))
			}
			out := t.TempDir() + "/parasite.bin"
			if b, err := exec.Command("parasite/build.sh", arch, out).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, b)
			}
			want, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile("parasite_" + arch + ".bin")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("parasite_%[1]s.bin is not parasite/%[1]s.S assembled: run GOARCH=%[1]s go generate ./tracer", arch)
			}
		})
	}
}

func TestKcmpSet(t *testing.T) {
	var s kcmpSet[int]
	order := func(a, b int) int {
		switch {
		case a == b:
			return 0
		case a < b:
			return 1
		}
		return 2
	}
	for _, n := range []int{5, 3, 9, 5, 1, 3, 9, 7} {
		if got, _ := s.find(func(o int) int { return order(n, o) }, func() int { return n }); got != n {
			t.Errorf("find(%d) = %d", n, got)
		}
	}
	if d := cmp.Diff([]int{1, 3, 5, 7, 9}, s.sorted); d != "" {
		t.Error(d)
	}
}

func TestParseSyscall(t *testing.T) {
	for text, want := range map[string]sleeping{
		"running\n":             {},
		"-1 0x7ffd0 0x7f12ab\n": {nr: -1, sp: 0x7ffd0, pc: 0x7f12ab},
		"271 0x1 0x2 0x7f00 0x4 0x5 0x6 0x7ffd0 0x401000\n": {nr: 271, args: [6]uint64{1, 2, 0x7f00, 4, 5, 6}, sp: 0x7ffd0, pc: 0x401000},
		"": {},
		"271 0x1 0x2 0x7f00 0x4 0x5 0x6 0x7ffd0 end\n": {},
	} {
		if got, ok := parseSyscall([]byte(text)); got != want || ok != (want != sleeping{}) {
			t.Errorf("%q: %+v %v", text, got, ok)
		}
	}
}
