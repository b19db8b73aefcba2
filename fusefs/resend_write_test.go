package fusefs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// appending is a file as a server finds it that takes over, and an append that the one before it had begun.
type appending struct {
	*testing.T
	name string
	w    *write
}

func begunAppend(t *testing.T, content string, adopted bool) *appending {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := newCredentials()
	if err != nil {
		t.Fatal(err)
	}
	path, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(path) })
	h := newHandle(fd, unix.O_RDWR|unix.O_APPEND)
	h.node, h.adopted = &node{fd: path}, adopted
	t.Cleanup(h.close)
	l := &Layer{ledger: openLedger(make([]byte, 4*ledgerSlotBytes)), creds: creds}
	q := ask(2|resentMark, opWrite)
	q.Padding = l.ledger.take()
	s := l.ledger.slot(q)
	at, err := h.beforeAppend()
	if err != nil {
		t.Fatal(err)
	}
	s.book(q)
	s.position = at
	s.begin(q, inodeID{}, inodeID{})
	return &appending{t, name, &write{l: l, q: &request{header: q, op: 0}, h: h, flags: unix.O_RDWR | unix.O_APPEND}}
}

// written is what the server that died has written.
func (a *appending) written(data string) {
	if n, err := unix.Write(a.w.h.fd, []byte(data)); n != len(data) || err != nil {
		a.Fatal(n, err)
	}
}

// behind is what somebody appends behind the layer.
func (a *appending) behind(data string) {
	f, err := os.OpenFile(a.name, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(data)
	}
	if err != nil {
		a.Fatal(err)
	}
	_ = f.Close()
}

func (a *appending) again(data, want string) {
	a.Helper()
	n, done := a.w.doneBefore([]byte(data))
	if done {
		n = a.w.finish([]byte(data), n)
	} else {
		var err error
		if n, err = a.w.h.append(a.w.l.ledger.slot(a.w.q.header), a.w.q.header, []byte(data), 0); err != nil {
			a.Fatal(err)
		}
	}
	got, err := os.ReadFile(a.name)
	if err != nil || n != len(data) || string(got) != want {
		a.Errorf("%d of %d bytes, the file has %q, not %q (%v)", n, len(data), got, want, err)
	}
}

func TestAppendAgain(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		name := map[bool]string{false: "opened", true: "adopted"}[adopted]
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				name        string
				before      func(*appending)
				data, wants string
				times       int
			}{
				{"not_done", func(*appending) {}, "x\n", "x\nx\n", 1},
				{"done", func(a *appending) { a.written("x\n") }, "x\n", "x\nx\n", 1},
				{"done_by_half", func(a *appending) { a.written("01234") }, "0123456789", "x\n0123456789", 1},
				{"done_by_half_twice", func(a *appending) { a.written("01"); a.written("23") }, "0123456789", "x\n0123456789", 2},
				{"not_done_while_others_append_the_same", func(a *appending) { a.behind("x\n") }, "x\n", "x\nx\nx\n", 1},
				{"done_while_others_append_the_same", func(a *appending) { a.behind("x\n"); a.written("x\n"); a.behind("x\n") }, "x\n", "x\nx\nx\nx\n", 1},
			} {
				t.Run(c.name, func(t *testing.T) {
					a := begunAppend(t, "x\n", adopted)
					c.before(a)
					for range c.times {
						a.again(c.data, c.wants)
					}
				})
			}
		})
	}
}
