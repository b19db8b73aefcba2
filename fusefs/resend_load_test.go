package fusefs_test

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// places are where the load's servers are killed, unless they are killed anywhere.
var places = []string{"read", "begun", "done", "recorded", "answered", "sent"}

// everyRequest are those that the load sends.
const everyRequest = "lookup open opendir create write unlink rename link mkdir rmdir release flush readdir readdirplus setattr"

var killedLoad = flag.Duration("killed-load", 4*time.Second, "how long TestKilledUnderLoad kills servers")

// TestKilledUnderLoad kills servers at random moments while processes append, create, rename, link and unlink in one
// directory. Each knows what it did: no call fails, nothing is lost, nothing is there twice.
func TestKilledUnderLoad(t *testing.T) { resentBothWays(t, killedUnderLoad) }

func killedUnderLoad(t *testing.T, noResend bool) {
	const workers = 3
	f := serveFragile(t, false, noResend)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	must(t, os.Mkdir(filepath.Join(f.back, "d"), 0o755))
	var callers []*caller
	var results []<-chan string
	for i := range workers {
		c := f.caller()
		callers = append(callers, c)
		results = append(results, c.begin(fmt.Sprintf("%d %d %d", i, seed, killedLoad.Milliseconds()), "load", f.mnt))
	}
	resent := uint64(0)
	for end := time.Now().Add(*killedLoad); time.Now().Before(end); {
		if random.IntN(3) == 0 {
			time.Sleep(time.Duration(random.Int64N(int64(60 * time.Millisecond))))
			f.killNow()
		} else { // with one request at least that is not answered
			must(t, f.in.Encode(armed(places[random.IntN(len(places))], everyRequest, false))) // it may stop before it answers
			f.killAt(2 * time.Second)
		}
		resent += f.tell(victimCommand{Do: "armed"}).Resent
	}
	for i, r := range results {
		if got := callers[i].wait(r, "the load"); !strings.HasPrefix(got, "done ") {
			t.Errorf("worker %d: %s", i, got)
		} else {
			t.Logf("worker %d: %s", i, got)
		}
	}
	r := f.settledBut(math.MaxInt)
	t.Logf("%d servers killed, %d requests seen again, %d slots, %d objects that a FORGET was lost of", f.kills, resent+r.Resent, r.Slots, r.Nodes)
	all, err := os.ReadFile(filepath.Join(f.back, "shared.log"))
	must(t, err)
	for i := range workers {
		own, err := os.ReadFile(filepath.Join(f.back, fmt.Sprintf("own%d.log", i)))
		must(t, err)
		ordered(t, fmt.Sprintf("own%d.log", i), own, i)
		ordered(t, "shared.log", all, i)
	}
}

// ordered checks that the lines of a worker are there, each once and in their order.
func ordered(t *testing.T, name string, data []byte, worker int) {
	t.Helper()
	next := 0
	for line := range bytes.Lines(data) {
		var w, n int
		if _, err := fmt.Sscanf(string(line), "%d %d\n", &w, &n); err != nil {
			t.Fatalf("%s: the line %q", name, line)
		}
		if w != worker {
			continue
		}
		if n != next {
			t.Fatalf("%s: after line %d of worker %d comes line %d", name, next-1, worker, n)
		}
		next++
	}
	if next == 0 {
		t.Errorf("%s: worker %d has written nothing", name, worker)
	}
}

// loader is one worker's load, and what it knows to be there.
type loader struct {
	*calls
	worker      int
	random      *rand.Rand
	names       map[string]string // content by name
	shared, own int
	lines       int
	made        int
}

// load makes calls for some time and checks their results.
func load(c *calls, args string) {
	var worker int
	var seed, ms uint64
	_, err := fmt.Sscan(args, &worker, &seed, &ms)
	l := &loader{calls: c, worker: worker, random: rand.New(rand.NewPCG(seed, uint64(worker)+1)), names: map[string]string{}}
	if err == nil {
		l.shared, err = unix.Open(c.path("shared.log"), unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o644)
	}
	if err == nil {
		l.own, err = unix.Open(c.path(fmt.Sprintf("own%d.log", worker)), unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o644)
	}
	n := 0
	for end := time.Now().Add(time.Duration(ms) * time.Millisecond); err == nil && time.Now().Before(end); n++ {
		err = l.call()
	}
	if err == nil {
		err = l.compare()
	}
	_, _ = unix.Close(l.shared), unix.Close(l.own)
	if err != nil {
		fmt.Fprintf(&c.out, "after %d calls: %v", n, err)
		return
	}
	fmt.Fprintf(&c.out, "done %d calls, %d lines, %d files", n, l.lines, len(l.names))
}

func (l *loader) file(name string) string { return l.path(filepath.Join("d", name)) }

// some is one of the worker's names, "" if it has none.
func (l *loader) some() string {
	if len(l.names) == 0 {
		return ""
	}
	list := make([]string, 0, len(l.names))
	for n := range l.names {
		list = append(list, n)
	}
	slices.Sort(list)
	return list[l.random.IntN(len(list))]
}

func (l *loader) fresh() string {
	l.made++
	return fmt.Sprintf("w%d-%d", l.worker, l.made)
}

func wrap(err error, format string, args ...any) error {
	if err != nil {
		return fmt.Errorf(format+": %w", append(args, err)...)
	}
	return nil
}

func (l *loader) call() error {
	a := l.some()
	switch k := l.random.IntN(10); {
	case k < 3:
		return l.append()
	case k < 5 || a == "":
		return l.create()
	case k == 5:
		b := l.fresh()
		if l.random.IntN(2) == 0 {
			b = l.some()
		}
		err := unix.Rename(l.file(a), l.file(b))
		if l.names[a] != l.names[b] { // else they are two names of one file, or one
			l.names[b] = l.names[a]
			delete(l.names, a)
		}
		return wrap(err, "rename %s to %s", a, b)
	case k == 6:
		delete(l.names, a)
		return wrap(unix.Unlink(l.file(a)), "unlink %s", a)
	case k == 7:
		d := l.file(l.fresh())
		if err := unix.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("mkdir %s: %w", d, err)
		}
		return wrap(unix.Rmdir(d), "rmdir %s", d)
	case k == 8:
		b := l.fresh()
		l.names[b] = l.names[a]
		return wrap(unix.Link(l.file(a), l.file(b)), "link %s to %s", a, b)
	}
	got, err := os.ReadFile(l.file(a))
	if err == nil && string(got) != l.names[a] {
		err = fmt.Errorf("it has %q, not %q", got, l.names[a])
	}
	return wrap(err, "read %s", a)
}

func (l *loader) append() error {
	line := fmt.Appendf(nil, "%d %d\n", l.worker, l.lines)
	l.lines++
	for _, fd := range []int{l.shared, l.own} {
		if n, err := unix.Write(fd, line); err != nil || n != len(line) {
			return fmt.Errorf("append line %d: %d bytes of %d, %v", l.lines-1, n, len(line), err)
		}
	}
	return nil
}

func (l *loader) create() error {
	name := l.fresh()
	fd, err := unix.Open(l.file(name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	l.names[name] = "content of " + name
	_, err = unix.Write(fd, []byte(l.names[name]))
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return wrap(err, "write %s", name)
}

// compare lists what is there.
func (l *loader) compare() error {
	list, err := os.ReadDir(l.path("d"))
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range list {
		there[e.Name()] = true
		if _, mine := l.names[e.Name()]; !mine && strings.HasPrefix(e.Name(), fmt.Sprintf("w%d-", l.worker)) {
			return fmt.Errorf("%s is there and should not", e.Name())
		}
	}
	for name, want := range l.names {
		got, err := os.ReadFile(l.file(name))
		if err != nil || string(got) != want || !there[name] {
			return fmt.Errorf("%s: %w, content %q, not %q", name, err, got, want)
		}
	}
	return nil
}
