package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	page, maxPages = 4096, 12
	maxSize        = maxPages * page
	maxDescs       = 5
	maxSlots       = 3
	maxMaps        = 3
	blocks, block  = 16, 128 // ranges for locks
	files          = 40
	folders        = 4
	listings       = 3
	listed         = 150 // entries of the folder "list"
	highNumbers    = 512 // and above: for dup3
	aboveSlots     = highNumbers + files*maxDescs*maxSlots
)

// The model: what each object must be. A file's lock is held over each operation on
// the file and the change of its model, so that any difference is somebody else's doing.

type file struct {
	mu              sync.Mutex
	number          int
	live, linkable  bool
	folder, folder2 int
	name, name2     string // "": none
	ino             uint64
	size            int64
	version         uint64
	data            [maxSize]byte // zeros beyond size
	descs           [maxDescs]desc
	maps            [maxMaps]mapping
	posix           [blocks]byte // 0, 1 read, 2 write
}

// desc is an open file description.
type desc struct {
	live    bool
	life    int // counts the descriptions that were here
	slots   [maxSlots]slot
	flags   int // F_GETFL
	off     int64
	owner   int // F_SETOWN
	sig     int // F_SETSIG
	flocked int // 0, LOCK_SH, LOCK_EX
	ofd     [blocks]byte
}

// slot is one descriptor. One of package os may be known to the runtime's poller.
type slot struct {
	fd      int      // -1: none
	os      *os.File // nil: we use system calls
	cloexec bool
}

func (d *desc) reads() bool {
	return d.flags&unix.O_PATH == 0 && d.flags&unix.O_ACCMODE != unix.O_WRONLY
}
func (d *desc) writes() bool {
	return d.flags&unix.O_PATH == 0 && d.flags&unix.O_ACCMODE != unix.O_RDONLY
}

// mapping is a memory map of some pages of a file.
type mapping struct {
	at                []byte // nil: none
	private, writable bool   // writable: mprotect may make it so
	first, n          int    // pages of the file
	pages             [maxPages]struct {
		present, locked bool
		prot            int    // unix.PROT_…
		own             []byte // of a private map, where it was written to
	}
}

// desc finds a description that is good for something.
func (w *worker) desc(f *file, good func(*desc) bool) *desc {
	from := w.r.IntN(maxDescs)
	for i := range maxDescs {
		if d := &f.descs[(from+i)%maxDescs]; d.live && (good == nil || good(d)) {
			return d
		}
	}
	return nil
}

// slot is a descriptor of a description that is live.
func (w *worker) slot(d *desc) *slot {
	for i := w.r.IntN(maxSlots); ; i = (i + 1) % maxSlots {
		if d.slots[i].fd >= 0 {
			return &d.slots[i]
		}
	}
}

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// newBytes fills b with what nobody has written before.
func (f *file) newBytes(b []byte, at int64) {
	f.version++
	for i := range b {
		b[i] = byte(mix(uint64(f.number)<<40 ^ f.version<<20 ^ uint64(at+int64(i))))
	}
}

// written puts into the model what was written at an offset.
func (f *file) written(b []byte, at int64) {
	copy(f.data[at:], b)
	f.size = max(f.size, at+int64(len(b)))
}

// expect is how many bytes a read gives.
func (f *file) expect(at int64, n int) int { return int(max(0, min(int64(n), f.size-at))) }

func (w *worker) same(f *file, b []byte, at int64, what string) {
	for i := range b {
		if b[i] != f.data[at+int64(i)] {
			w.bad(nil, "%s: byte %d of %d is %#x, not %#x", what, at+int64(i), f.size, b[i], f.data[at+int64(i)])
		}
	}
}

// difference is what a worker panics with.
type difference struct{}

// bad reports the first difference; the worker ends.
func (w *worker) bad(err error, format string, args ...any) {
	number := -1
	if w.busy != nil {
		number = w.busy.number
	}
	w.p.setBad(number, fmt.Sprintf("seed %d step %d object %d (%s %d, at %.6f): %s (%v)",
		w.p.seed, w.step, number, w.what, w.n, monotonic(), fmt.Sprintf(format, args...), err))
	panic(difference{})
}

// ok is bad if there is an error.
func (w *worker) ok(err error, format string, args ...any) {
	if err != nil {
		w.bad(err, format, args...)
	}
}

// caught ends a worker that has found a difference, or that a fault or a mistake has ended.
func (w *worker) caught() {
	if v := recover(); v != nil && v != (difference{}) {
		number := -1
		if w.busy != nil {
			number = w.busy.number
		}
		w.p.setBad(number, fmt.Sprintf("seed %d step %d object %d (%s %d): %v", w.p.seed, w.step, number, w.what, w.n, v))
	}
}

// note notes what is about to be done.
func (w *worker) note(f *file, format string, args ...any) {
	w.busy = f
	w.step++
	w.p.progress[w.n].Add(1)
	number := -1
	if f != nil {
		number = f.number
	}
	w.p.add(number, fmt.Sprintf("%.6f %s %d step %d file %d: %s", monotonic(), w.what, w.n, w.step, number, fmt.Sprintf(format, args...)))
}

// log has the last actions, and the first difference.
type log struct {
	mu     sync.Mutex
	lines  [1 << 15]entry
	n      int64
	about  int
	first  string
	broken atomic.Bool
}

type entry struct {
	file int
	text string
}

func (l *log) add(file int, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines[l.n%int64(len(l.lines))] = entry{file, text}
	l.n++
}

func (l *log) steps() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

func (l *log) isBad() bool { return l.broken.Load() }

func (l *log) setBad(file int, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.broken.Load() {
		l.about, l.first = file, strings.ReplaceAll(text, "\n", "; ")
		l.broken.Store(true)
	}
}

func (l *log) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

// tell writes what was done last, oldest first: the last few, and of those before them
// the ones that were about the object that is bad.
func (l *log) tell(to io.Writer, few int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := max(0, l.n-int64(len(l.lines)))
	if l.about < 0 {
		from = max(from, l.n-3000) // folders: all are about them
	}
	for i := from; i < l.n; i++ {
		if e := l.lines[i%int64(len(l.lines))]; i >= l.n-few || e.file == l.about {
			if _, err := fmt.Fprintln(to, e.text); err != nil {
				return // nobody listens
			}
		}
	}
}

func monotonic() float64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return float64(ts.Sec) + float64(ts.Nsec)/1e9
}

// within waits for something that has to come.
func (w *worker) within(what string, c <-chan struct{}) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-c:
	case <-t.C:
		w.bad(os.ErrDeadlineExceeded, "%s did not come", what)
	}
}

// is reports one of several errors.
func is(err error, one ...error) bool {
	for _, e := range one {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
