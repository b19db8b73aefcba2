package fusefs_test

import (
	"errors"
	"math"
	"os"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"

	"github.com/faultgraft/faultgraft/fusefs"
)

// F4 through real reads: never, always, and one in ten within 3 sigma; F12: the
// program's count, the events and the counters agree.
func TestProbability(t *testing.T) {
	n := 100_000
	if testing.Short() || raceDetector {
		n = 10_000
	}
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDONLY)
	buf := make([]byte, 1)
	for _, c := range []struct {
		p   string
		n   int
		p64 float64
	}{{"0", 1000, 0}, {"1", 1000, 1}, {"0.1", n, 0.1}} {
		b.recorded()
		b.rules("io error=EIO op=read seed=7 p=" + c.p)
		failed := 0
		for range c.n {
			if _, err := unix.Pread(fd, buf, 0); err == unix.EIO {
				failed++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		mean, sigma := float64(c.n)*c.p64, math.Sqrt(float64(c.n)*c.p64*(1-c.p64))
		if math.Abs(float64(failed)-mean) > 3*sigma {
			t.Errorf("p=%s: %d of %d failed", c.p, failed, c.n)
		}
		s := b.Rules()[0]
		if s.Matched != uint64(c.n) || s.Fired != uint64(failed) || len(b.recorded()) != failed {
			t.Errorf("p=%s: the program saw %d of %d, the counters say %d of %d", c.p, failed, c.n, s.Fired, s.Matched)
		}
	}
}

// pattern is which of n reads fail, as a string of 0 and 1.
func pattern(t *testing.T, fd, n int) string {
	t.Helper()
	var out []byte
	for range n {
		_, err := unix.Pread(fd, make([]byte, 1), 0)
		switch err {
		case nil:
			out = append(out, '0')
		case unix.EIO:
			out = append(out, '1')
		default:
			t.Fatal(err)
		}
	}
	return string(out)
}

func TestTriggers(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDONLY)
	for rule, want := range map[string]string{
		"after=3":                 "000111111111",
		"every=4":                 "100010001000",
		"times=2":                 "110000000000",
		"after=2 every=3 times=3": "001001001000",
		"nth=5":                   "000010000000",
	} {
		b.rules("io error=EIO op=read " + rule)
		if got := pattern(t, fd, len(want)); got != want {
			t.Errorf("%s: %s, want %s", rule, got, want)
		}
	}
	// the same seed gives the same faults
	b.rules("io error=EIO op=read p=50% seed=11")
	first := pattern(t, fd, 64)
	b.rules()
	b.rules("io error=EIO op=read p=50% seed=11")
	if again := pattern(t, fd, 64); again != first {
		t.Errorf("%s\n%s", first, again)
	}
}

// times=N is exact however many threads race for it.
func TestTimesUnderThreads(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	b.rules("io error=EIO op=read times=100")
	var failed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			fd, err := unix.Open(b.path("f"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = unix.Close(fd) }()
			for range 50 {
				if _, err := unix.Pread(fd, make([]byte, 1), 0); err == unix.EIO {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() != 100 {
		t.Errorf("%d reads failed", failed.Load())
	}
}

func TestTimeToLive(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDONLY)
	rules := parse(t, "io error=EIO op=read ttl=1m")
	must(t, b.SetRules(rules, time.Now().Add(-time.Hour)))
	if got := pattern(t, fd, 3); got != "000" {
		t.Error("a rule acts after its time to live")
	}
	if s := b.Rules()[0]; !s.Expired || s.Matched != 0 {
		t.Errorf("%+v", s)
	}
	must(t, b.SetRules(nil, time.Now()))
	must(t, b.SetRules(rules, time.Now()))
	if got := pattern(t, fd, 3); got != "111" || b.Rules()[0].Expired {
		t.Error(got)
	}
}

func TestEqualRuleKeepsItsCounter(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDONLY)
	b.rules("io error=EIO op=read times=2")
	pattern(t, fd, 1)
	b.rules("io error=EIO op=read times=2", "io error=EIO op=write")
	if got := pattern(t, fd, 3); got != "100" {
		t.Error(got)
	}
	if s := b.Rules(); s[0].Fired != 2 || s[1].Fired != 0 {
		t.Errorf("%+v", s)
	}
}

func TestSetRulesRefuses(t *testing.T) {
	b := over(t, setup{direct: true})
	b.rules("io error=EIO op=read")
	for _, e := range []syscall.Errno{unix.ENOSYS, 512} {
		bad := parse(t, "io error=EIO op=fsync")
		bad[0].IO.Errors = []policy.WeightedErrno{{Errno: e, Weight: 1}}
		if err := b.SetRules(bad, time.Now()); err == nil {
			t.Errorf("errno %d was accepted", e)
		}
	}
	if s := b.Rules(); len(s) != 1 {
		t.Error("a refused set changed the rules")
	}
}

func TestScope(t *testing.T) {
	var only atomic.Uint32
	b := over(t, setup{direct: true, scope: func(tid uint32) bool { return tid == only.Load() }})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDONLY)
	b.rules("io error=EIO op=read")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if got := pattern(t, fd, 1); got != "0" {
		t.Error("a caller out of scope was faulted")
	}
	only.Store(uint32(unix.Gettid()))
	if got := pattern(t, fd, 1); got != "1" {
		t.Error("a caller in scope was not")
	}
	b.Trust(os.Getpid(), true)
	if got := pattern(t, fd, 1); got != "0" {
		t.Error("a trusted process was faulted")
	}
	b.Trust(os.Getpid(), false)
	if s := b.Rules()[0]; s.Matched != 1 {
		t.Errorf("%d operations counted", s.Matched)
	}
}

// A wait of an hour ends at once when its rule goes, and when a signal comes.
func TestLatencyIsCancelled(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDONLY)
	start := func() (int, chan error) {
		return inThread(func() error { _, err := unix.Pread(fd, make([]byte, 1), 0); return err })
	}
	wait := func(what string, c chan error, want error) {
		t.Helper()
		if err := within(t, c); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	b.rules("io error=EIO latency=1h op=read ttl=2h")
	_, c := start()
	waitFor(t, "the read", func() bool { return b.Rules()[0].Fired == 1 })
	b.rules()
	wait("rule removed", c, nil)
	if e := b.recorded(); len(e) != 1 || !e[0].Cut || e[0].Errno != 0 {
		t.Errorf("%+v", e)
	}

	short := parse(t, "io error=EIO latency=1h op=read ttl=2h")
	short[0].Trigger.TTL = 300 * time.Millisecond
	must(t, b.SetRules(short, time.Now()))
	_, c = start()
	wait("time to live over", c, nil)
	b.recorded()

	b.rules("io error=EIO latency=1h op=read ttl=2h")
	tid, c := start()
	waitFor(t, "the read", func() bool { return b.Rules()[0].Fired == 1 })
	must(t, unix.Tgkill(os.Getpid(), tid, unix.SIGURG)) // Go ignores it, but handles it
	wait("signal", c, unix.EIO)                         // what the rule says, and no EINTR
	if e := b.recorded(); len(e) != 1 || e[0].Errno != unix.EIO || !e[0].Cut {
		t.Errorf("%+v", e)
	}
	b.rules("io latency=1h op=read ttl=2h")
	tid, c = start()
	waitFor(t, "the read", func() bool { return b.Rules()[0].Fired == 1 })
	must(t, unix.Tgkill(os.Getpid(), tid, unix.SIGURG))
	wait("signal during a latency alone", c, nil)
	if e := b.recorded(); len(e) != 1 || e[0].Errno != 0 || !e[0].Cut {
		t.Errorf("%+v", e)
	}
}

// Faults follow the current name of an open file, any of several, and the last of one that has none.
func TestRulesFollowNames(t *testing.T) {
	b := over(t, setup{direct: true})
	must(t, os.MkdirAll(b.under("a/b"), 0o755))
	b.write("a/b/f", "content")
	fd := b.open("a/b/f", unix.O_RDONLY)
	fails := func(want bool, why string) {
		t.Helper()
		if got := pattern(t, fd, 1); (got == "1") != want {
			t.Error(why, got)
		}
	}
	b.rules("io error=EIO op=read path=/data/x/**")
	fails(false, "before")
	must(t, os.Rename(b.path("a"), b.path("x")))
	fails(true, "a directory above was renamed into the rule")
	must(t, os.Rename(b.path("x/b/f"), b.path("g")))
	fails(false, "moved out")
	must(t, os.Link(b.path("g"), b.path("x/h")))
	fails(true, "one of two names matches")
	must(t, os.Remove(b.path("g")))
	fails(true, "one name left")
	must(t, os.Remove(b.path("x/h")))
	fails(true, "unlinked: its last name")
	if e := b.recorded(); e[len(e)-1].Path != "/data/x/h" {
		t.Errorf("%+v", e[len(e)-1])
	}
	b.rules("io error=EIO op=rename path=/data/target")
	b.write("s", "")
	if err := os.Rename(b.path("s"), b.path("target")); !errors.Is(err, unix.EIO) {
		t.Errorf("rename onto: %v", err)
	}
	must(t, os.Mkdir(b.path("tmp"), 0o755))
	b.rules("io error=EIO op=write path=/data/tmp/**")
	tmp := b.open("tmp", unix.O_TMPFILE|unix.O_RDWR)
	if _, err := unix.Write(tmp, []byte("x")); err != unix.EIO {
		t.Errorf("file without a name: %v", err)
	}
}

// F7: with a read rule, no read is answered from a cache, whatever was read or mapped before; changes below are seen at once.
func TestNoStaleReads(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "old content")
	fd := b.open("f", unix.O_RDONLY)
	buf := make([]byte, 32)
	_, err := unix.Pread(fd, buf, 0)
	must(t, err)
	mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer func() { _ = unix.Munmap(mem) }()
	must(t, faultIn(mem[:1]))
	must(t, os.WriteFile(b.under("f"), []byte("new content, longer"), 0o644))
	if n, err := unix.Pread(fd, buf, 0); err != nil || string(buf[:n]) != "new content, longer" {
		t.Errorf("%q %v", buf[:max(n, 0)], err)
	}
	b.rules("io error=EIO op=read")
	if got := pattern(t, fd, 3); got != "111" {
		t.Error("read from a cache: ", got)
	}
	// pages that are mapped already are dropped when a rule comes
	b.rules("io error=EIO op=mmap-read")
	if err := faultIn(mem[:1]); err != unix.EFAULT {
		t.Errorf("page from a cache: %v", err)
	}
	// names and attributes, too
	var st unix.Stat_t
	b.rules()
	must(t, unix.Stat(b.path("f"), &st))
	b.rules("io error=EACCES op=getattr path=/data/f")
	if err := unix.Stat(b.path("f"), &st); err != unix.EACCES {
		t.Errorf("attributes from a cache: %v", err)
	}
	b.rules()
	must(t, unix.Stat(b.path("f"), &st))
	b.rules("io error=EACCES op=lookup path=/data/f")
	if err := unix.Stat(b.path("f"), &st); err != unix.EACCES {
		t.Errorf("name from a cache: %v", err)
	}
}

func TestEventJSON(t *testing.T) {
	want := fusefs.Event{Time: time.Now().UTC().Round(0), Rule: "wal", Op: 18, Path: "/data/f", Offset: 4096, Size: 10, PID: 7, UID: 8, Errno: unix.EIO, Latency: 3 * time.Millisecond, N: 9,
		Action: fusefs.ActionTorn, Bytes: 5, Places: []fusefs.Place{{Offset: 4096, Size: 5}}}
	j, err := want.MarshalJSON()
	must(t, err)
	var got fusefs.Event
	must(t, got.UnmarshalJSON(j))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v", j, got)
	}
	for _, bad := range []string{`{"op":"fsink"}`, `{"op":"fsync","errno":"EFOO"}`, `{"op":"fsync","latency":"3"}`, `[]`} {
		if got.UnmarshalJSON([]byte(bad)) == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

// inThread runs f on a thread of its own and tells which.
func inThread(f func() error) (tid int, result chan error) {
	result, id := make(chan error, 1), make(chan int)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		id <- unix.Gettid()
		result <- f()
	}()
	return <-id, result
}

func within(t *testing.T, c chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("still waiting")
		return nil
	}
}
