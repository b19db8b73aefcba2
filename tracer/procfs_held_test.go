package tracer

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseQueued(t *testing.T) {
	if n, ok, err := parseQueued([]byte("pos:\t0\nflags:\t02\nmnt_id:\t10\nino:\t4\nscm_fds: 3\n")); n != 3 || !ok || err != nil {
		t.Error(n, ok, err)
	}
	if n, ok, err := parseQueued([]byte("pos:\t0\nflags:\t02\n")); n != 0 || ok || err != nil { // TCP
		t.Error(n, ok, err)
	}
	if _, _, err := parseQueued([]byte("scm_fds: -1\n")); err == nil {
		t.Error("no error")
	}
}

func TestParseRing(t *testing.T) {
	text := "pos:\t0\nflags:\t02000002\nSqThread:\t-1\nUserFiles:\t6\n    0: /d/a\\040b\\012\\134c\n    1: <none>\n    3: socket:[458821]\n    5: /d/gone\\040(deleted)\n" +
		"UserBufs:\t1\n    0: 0x7f/12\nPollList:\n"
	files, told, err := parseRing([]byte(text))
	want := []ringFile{{0, "/d/a b\n\\c"}, {3, "socket:[458821]"}, {5, "/d/gone (deleted)"}}
	if d := cmp.Diff(want, files, cmp.AllowUnexported(ringFile{})); d != "" || !told || err != nil {
		t.Error(told, err, d)
	}
	if _, told, err := parseRing([]byte("pos:\t0\nflags:\t02000002\nmnt_id:\t17\n")); told || err != nil {
		t.Error("a ring that is busy", told, err)
	}
	if _, _, err := parseRing([]byte("UserFiles:\tx\n")); err == nil {
		t.Error("no error")
	}
}

func TestParseWatches(t *testing.T) {
	text := "pos:\t0\ninotify wd:2 ino:988109 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:098198004f646f5e\n" +
		"inotify wd:1 ino:8 sdev:900003 mask:fff ignored_mask:0 \nfanotify flags:0 event-flags:8000\nfanotify sdev:fe00000 mflags:0 mask:20 ignored_mask:0\n" +
		"fanotify mnt_id:1b mflags:0 mask:20 ignored_mask:0\nfanotify ino:7 sdev:2d mflags:0 mask:20 ignored_mask:0\n"
	got, err := parseWatches([]byte(text))
	h := unix.NewFileHandle(1, []byte{0x09, 0x81, 0x98, 0, 0x4f, 0x64, 0x6f, 0x5e})
	want := []watch{
		{wd: 2, ino: 0x988109, dev: unix.Mkdev(0xfe, 0), handle: &h},
		{wd: 1, ino: 8, dev: unix.Mkdev(9, 3)},
		{wd: -1, dev: unix.Mkdev(0xfe, 0)}, {wd: -1, mountID: 0x1b}, {wd: -1, ino: 7, dev: unix.Mkdev(0, 0x2d)},
	}
	same := cmp.Comparer(func(a, b *unix.FileHandle) bool {
		return (a == nil) == (b == nil) && (a == nil || a.Type() == b.Type() && string(a.Bytes()) == string(b.Bytes()))
	})
	if d := cmp.Diff(want, got, cmp.AllowUnexported(watch{}), same); d != "" || err != nil {
		t.Error(err, d)
	}
	for _, bad := range []string{"inotify wd:x ino:1\n", "inotify wd:1 ino:g\n", "fanotify mnt_id:-1\n", "inotify wd:1 f_handle:0\n"} {
		if _, err := parseWatches([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestParsePolled(t *testing.T) {
	got, err := parsePolled([]byte("pos:\t0\ntfd:        6 events:       19 data:                0  pos:0 ino:70045 sdev:9\ntfd:       17 events:        1 data: ffffffffffffffff  pos:12 ino:a sdev:2d\n"))
	want := []polled{{6, unix.Mkdev(0, 9), 0x70045}, {17, unix.Mkdev(0, 0x2d), 10}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(polled{})); d != "" || err != nil {
		t.Error(err, d)
	}
	for _, bad := range []string{"tfd:\n", "tfd: x\n", "tfd: 1 ino:g\n"} {
		if _, err := parsePolled([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestParseSwaps(t *testing.T) {
	got := parseSwaps([]byte("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/swap\\040file\\040(deleted)                              file\t\t1020\t\t0\t\t0\n/dev/zram0 partition\t1\t0\t100\n"))
	if d := cmp.Diff([]string{"/swap file (deleted)"}, got); d != "" {
		t.Error(d)
	}
}

func FuzzHeld(f *testing.F) {
	f.Add([]byte("scm_fds: 3\nUserFiles:\t2\n    0: /a\\040b\n    1: <none>\nUserBufs:\t0\n"))
	f.Add([]byte("inotify wd:2 ino:988109 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:098198004f646f5e\nfanotify mnt_id:1b mflags:0\n"))
	f.Add([]byte("tfd:        6 events:       19 data:                0  pos:0 ino:70045 sdev:9\n/swap\\040 file 1\n\\777\\08"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, _, err := parseQueued(b); err == nil && n < 0 {
			t.Error(n)
		}
		if files, told, err := parseRing(b); err == nil {
			for _, r := range files {
				if r.slot < 0 || !told {
					t.Error(told, r)
				}
			}
		}
		_, _ = parseWatches(b)
		_, _ = parsePolled(b)
		for _, s := range parseSwaps(b) {
			if !strings.HasPrefix(s, "/") {
				t.Error(s)
			}
		}
		if s := string(b); len(unescape(s)) > len(s) {
			t.Error(s)
		}
	})
}
