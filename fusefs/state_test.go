package fusefs

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func newState(t testing.TB) *State {
	t.Helper()
	s, err := NewState()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// names are those that a state tells of when its process dies at this moment.
func (s *State) names(t testing.TB) string {
	t.Helper()
	v, err := s.read()
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	var out []string
	for _, n := range v.names {
		out = append(out, fmt.Sprintf("%d/%s=%d", n.at.dir, n.at.text(), n.at.node))
	}
	return strings.Join(out, " ")
}

// Changes that belong together are there whole or not at all, at whichever store the process dies.
func TestStateChangesAtOnce(t *testing.T) {
	s := newState(t)
	table, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	dir, a, b := &node{id: 1}, &node{id: 2}, &node{id: 3}
	x, y := table.name(dir, "x", a), table.name(dir, "y", b)
	before := s.names(t)
	// What renamed does for an exchange.
	_ = table.changing()
	table.dropText(x)
	table.dropText(y)
	table.name(dir, "y", a)
	table.name(dir, "x", b)
	if got := s.names(t); got != before {
		t.Errorf("in the middle of a change: %s instead of %s", got, before)
	}
	// The process dies when they are written down, and when some of them are made.
	const after = "1/y=2 1/x=3"
	table.book()
	for n, c := range table.batch {
		if got := s.names(t); got != after {
			t.Errorf("%d of %d changes were made: %s instead of %s", n, len(table.batch), got, after)
		}
		c.s.commit.Store(c.commit)
	}
	table.changed()
	if got := s.names(t); got != after || table.head.redone.Load() != 0 {
		t.Errorf("after the change: %s, and %d are to be done again", got, table.head.redone.Load())
	}
}

// A slot that was freed in a change is not given to others before the change is made.
func TestStateSlotsAreNotUsedTwice(t *testing.T) {
	s := newState(t)
	table, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	dir := &node{id: 1}
	x := table.name(dir, "x", &node{id: 2})
	done := table.changing()
	table.dropText(x)
	o := table.owner(&lockOwner{id: 7}, key{}) // a slot of the same size, by somebody else
	done()
	if unsafe.Pointer(o) == unsafe.Pointer(x) || o.commit.Load() == 0 {
		t.Error("a slot that somebody else got meanwhile was freed")
	}
	table.dropOwner(o)
	if again := table.owner(&lockOwner{id: 8}, key{}); unsafe.Pointer(again) != unsafe.Pointer(o) {
		t.Error("a slot that was freed is not used again")
	}
}

// Long texts, and many slots, find room; so much is given back at the end.
func TestStateGrowsAndIsGivenBack(t *testing.T) {
	s := newState(t)
	table, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	dir := &node{id: 1}
	var want []string
	for i := range 5000 {
		name := strings.Repeat("n", i%256) + fmt.Sprint(i)
		table.name(dir, name, &node{id: uint64(i + 2)})
		want = append(want, fmt.Sprintf("1/%s=%d", name, i+2))
	}
	long := &node{id: 9, last: strings.Repeat("/p", 300_000)} // longer than there is room for
	table.last(long)
	if got := s.names(t); got != strings.Join(want, " ") {
		t.Errorf("%.200s instead of %.200s", got, want)
	}
	v, err := s.read()
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	if got := string(v.lasts[0].at.text()); !strings.HasPrefix(long.last, got) || len(got) < 500_000 {
		t.Errorf("%d bytes are kept of a path of %d", len(got), len(long.last))
	}
	s.discard()
	var st unix.Stat_t
	if err := unix.Fstat(s.files[stateTable0], &st); err != nil || st.Blocks != 0 {
		t.Errorf("%d blocks are left, %v", st.Blocks, err)
	}
}

// A state of which descriptors cannot be taken, or that is none, is refused, and stays as it is.
func TestRestoreRefuses(t *testing.T) {
	refused := func(what string, s *State) {
		t.Helper()
		l, err := Restore(Options{Prefix: "/data", State: s}, func(int) (int, error) { return -1, unix.EBADF })
		if err == nil {
			t.Errorf("%s: restored %v", what, l)
		}
	}
	refused("no state", nil)
	s := newState(t)
	refused("empty", s)
	l := unserved(t, true)
	before := l.o.State.head.active.Load()
	refused("not served", l.o.State)
	if l.o.State.Owner() != os.Getpid() || l.o.State.head.active.Load() != before {
		t.Errorf("the state is of %d now", l.o.State.Owner())
	}
	if _, err := OpenState(s.Files()[1:]); err == nil {
		t.Error("a state without one of its files is opened")
	}
	files := s.Files()
	if _, err := OpenState([]int{files[1], files[0], files[2], files[3], files[4]}); err == nil {
		t.Error("a state with its files in another order is opened")
	}
}

// Another version's state is refused, whatever it is that differs, and its files stay open for who knows it.
func TestStateOfAnotherVersion(t *testing.T) {
	for what, change := range map[string]func(*stateHead){
		"none":    func(h *stateHead) { h.magic++ },
		"form":    func(h *stateHead) { h.version++ },
		"laid":    func(h *stateHead) { h.layout++ },
		"table 2": func(h *stateHead) { h.active.Store(2) },
	} {
		s := newState(t)
		files := s.Files()
		if same, err := OpenState(files); err != nil {
			t.Errorf("its own: %v", err)
		} else if err := same.unmap(); err != nil {
			t.Error(err)
		}
		change(s.head)
		if _, err := OpenState(files); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("with another %q: %v", what, err)
		}
		var st unix.Stat_t
		for _, fd := range files {
			if err := unix.Fstat(fd, &st); err != nil {
				t.Errorf("after %q: %v", what, err)
			}
		}
	}
}

// A field that moved, grew or has another name is another layout.
func TestLayoutSeesEachChange(t *testing.T) {
	texts := map[string]bool{}
	for _, v := range []any{
		struct{ a, b uint32 }{}, struct{ b, a uint32 }{}, struct{ a, c uint32 }{}, struct{ a, b uint64 }{},
		struct {
			a uint32
			b int32
		}{}, struct{ a [2]uint32 }{}, struct{ a [2]struct{ b uint32 } }{}, struct{ a [2]struct{ c uint32 } }{},
	} {
		var b strings.Builder
		describe(&b, reflect.TypeOf(v))
		if texts[b.String()] {
			t.Errorf("%T is described as another is: %s", v, &b)
		}
		texts[b.String()] = true
	}
}

// FuzzStateTable has memory that makes no sense refused, or read without reaching beyond it.
func FuzzStateTable(f *testing.F) {
	f.Add([]byte{1}, uint64(0), uint64(2), uint8(0), uint32(64))
	f.Add([]byte{2, 1, 0, 0, 0, 0, 0, 0}, uint64(3), uint64(2), uint8(4), uint32(chunkBytes))
	f.Add([]byte{9, 9, 9}, uint64(99), uint64(chunks+1), uint8(77), uint32(1<<31))
	f.Fuzz(func(t *testing.T, data []byte, redone, used uint64, class uint8, bytes uint32) {
		s := newState(t)
		table, err := s.begin()
		if err != nil {
			t.Fatal(err)
		}
		defer table.close()
		copy(table.mem[chunkBytes:2*chunkBytes], data)
		for i := range table.head.redo {
			if len(data) >= 16*(i+1) {
				table.head.redo[i] = *(*redoEntry)(unsafe.Pointer(&append([]byte{}, data[16*i:16*i+16]...)[0]))
			}
		}
		table.head.redone.Store(redone)
		table.head.chunks.Store(used)
		table.head.class[1] = class
		table.head.used[1].Store(bytes)
		_, _ = Restore(Options{Prefix: "/data", State: s}, func(int) (int, error) { return -1, unix.EBADF })
	})
}

func FuzzHeldOFD(f *testing.F) {
	f.Add("pos:\t0\nlock:\t1: OFDLCK  ADVISORY  WRITE -1 00:2c:1234 0 EOF\nlock:\t2: OFDLCK  ADVISORY  READ -1 00:2c:1234 5 9\n")
	f.Add("lock:\t1: FLOCK  ADVISORY  WRITE 12 00:2c:1234 0 EOF\n")
	f.Add("lock:\t1: OFDLCK\n")
	f.Fuzz(func(t *testing.T, info string) {
		held, err := parseOFD(info)
		if err != nil && held != nil {
			t.Error("locks beside an error")
		}
	})
}

func TestHeldOFD(t *testing.T) {
	got, err := parseOFD("pos:\t0\nlock:\t1: OFDLCK  ADVISORY  WRITE -1 00:2c:1234 0 EOF\nlock:\t2: FLOCK  ADVISORY  WRITE 1 00:2c:1234 0 EOF\nlock:\t3: OFDLCK  ADVISORY  READ -1 00:2c:1234 5 9\n")
	want := []span{{unix.F_WRLCK, 0, toEnd}, {unix.F_RDLCK, 5, 9}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v instead of %v", got, err, want)
	}
}
