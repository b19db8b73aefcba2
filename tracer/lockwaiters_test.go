package tracer

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLockWaiters(t *testing.T) {
	got := parseLockWaiters([]byte(`1: POSIX  ADVISORY  WRITE 9740 fe:00:77 2 6
1: -> POSIX  ADVISORY  READ 9741 fe:00:77 0 EOF
1: -> OFDLCK ADVISORY  WRITE -1 fe:00:77 3 3
2: FLOCK  ADVISORY  WRITE 9740 00:28:5 0 EOF
2: -> FLOCK  ADVISORY  WRITE 9740 00:28:5 0 EOF
3: -> POSIX  ADVISORY  READ x fe:00:77 0 EOF
3: ->
`))
	want := []lockWaiter{{9741, unix.F_RDLCK, 77, 0, ^uint64(0)}, {-1, unix.F_WRLCK, 77, 3, 3}}
	if !slices.Equal(got, want) {
		t.Fatalf("%+v, want %+v", got, want)
	}
	l := &heldLock{reader: 4, obj: &Object{Ino: 77}, Lock: Lock{Type: unix.F_WRLCK, Start: 2, Len: 5}}
	if !got[0].gets(l) || got[1].gets(l) {
		t.Error("of a write lock that becomes a read lock, a reader gets its part, and no writer")
	}
	l.reader = -1
	if !got[1].gets(l) {
		t.Error("a lock that is dropped goes to a writer")
	}
	l.Start = 4
	if got[1].gets(l) {
		t.Error("another range")
	}
}

func FuzzLockWaiters(f *testing.F) {
	f.Add([]byte("1: -> POSIX  ADVISORY  READ 9741 fe:00:77 0 EOF\n"))
	f.Add([]byte("1: -> a b c d e f g\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, w := range parseLockWaiters(text) {
			_ = w.gets(&heldLock{reader: -1, obj: &Object{}})
		}
	})
}
