package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"golang.org/x/sys/unix"
)

// openFile is a target with every kind of object on one file, and another process
// of the same mount namespace with a file beside it.
type openFile struct {
	r                *rig
	h, other         *holder
	file, beside     string
	before, besideIs map[string]string
}

func openInEveryWay(r *rig) *openFile {
	r.t.Helper()
	o := &openFile{r: r, file: r.write("f", strings.Repeat("0123456789abcdef", 1024)), beside: r.write("beside", "0123456789")}
	o.h = r.start()
	o.other = r.startWith("nsenter", "--target", fmt.Sprint(o.h.pid()), "--mount", binaries.holder)
	h := o.h
	h.ok("open a %s rdwr", o.file)
	h.ok("lseek a 3")
	h.ok("dup a twin")
	h.ok("setlk a 2 5")
	h.ok("open locked %s rdonly", o.file)
	h.ok("flock locked")
	h.ok("open m %s rdwr", o.file)
	h.ok("mmap M m 8192 shared")
	h.ok("mmap P m 8192 private")
	h.ok("poke P 4096 modified")
	o.other.ok("open beside %s rdwr", o.beside)
	o.before, o.besideIs = h.snapshot(), o.other.snapshot()
	return o
}

// objects are the descriptors and maps of the file that openInEveryWay makes.
const objects = 4 + 2

// locksHeld checks from outside that the locks are there.
func (o *openFile) locksHeld(when string) {
	t := o.r.t
	t.Helper()
	f, err := os.OpenFile(o.file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("%s: flock from outside: %v", when, err)
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil || l.Type != unix.F_WRLCK || l.Start != 2 || l.Len != 5 {
		t.Errorf("%s: POSIX lock seen from outside: %+v, %v", when, l, err)
	}
}

// G24: a file that the kernel serves by itself comes under a rule: what is open of it is
// moved, in all the ways in which it is open, and nothing and nobody else.
func TestRuleComesToAnOpenFile(t *testing.T) {
	r := newRig(t)
	o := openInEveryWay(r)
	h, other := o.h, o.other
	g := r.inject(h, r.data, "io error=EACCES op=mkdir ttl=5m")
	// Another process again: a close would end the target's POSIX locks.
	late := r.startWith("nsenter", "--target", fmt.Sprint(h.pid()), "--mount", binaries.holder)
	late.ok("open f %s rdwr,append", o.file)
	h.is("ok 0123456789", "pread a 0 10")
	late.is("ok 0123456789", "pread f 0 10")

	read := r.update(g, "io error=EIO op=read path="+o.file+" ttl=5m")
	if n := len(read.Report.Swapped); n != objects+1 || len(read.Report.Skipped) > 0 || len(read.Report.Notes) > 0 {
		t.Errorf("%d objects moved, want %d; left %+v, notes %q", n, objects+1, read.Report.Skipped, read.Report.Notes)
	}
	stopped := map[int]int{}
	for _, s := range read.Report.Stopped {
		stopped[s.PID]++
	}
	if len(stopped) != 2 || stopped[h.pid()] != 1 || stopped[late.pid()] != 1 || read.PauseMs == 0 {
		t.Errorf("stops by process: %v, want one of %d and %d; %v ms", stopped, h.pid(), late.pid(), read.PauseMs)
	}
	for _, n := range []string{"a", "twin", "locked", "m"} {
		h.is("EIO", "pread %s 0 10", n)
	}
	late.is("EIO", "pread f 0 10")
	late.is("EIO", "cat %s", o.file)
	other.is("ok 0123456789", "pread beside 0 10")
	h.is("ok 3", "lseek twin cur")
	o.locksHeld("with a rule")
	h.is("ok modified", "peek P 4096 8")

	// From one rule to another nothing is moved: the files ask the server already.
	write := r.update(g, "io error=ENOSPC op=write path="+o.file+" ttl=5m")
	if len(write.Report.Stopped) > 0 {
		t.Errorf("stopped again: %+v", write.Report.Stopped)
	}
	h.is("ok 0123456789", "pread a 0 10")
	h.is("ENOSPC", "pwrite a 0 x")
	late.is("ENOSPC", "write f x")
	h.is("ok 0123", "peek M 0 4")

	none := r.update(g, "io error=EACCES op=mkdir ttl=5m")
	if len(none.Report.Stopped) > 0 {
		t.Errorf("stopped to end a rule: %+v", none.Report.Stopped)
	}
	h.is("ok 3456789abc", "read a 10")
	h.is("ok 13", "lseek twin cur")
	h.ok("lseek a 3")
	h.is("ok 6", "poke M 0 MAPPED")
	h.is("ok", "msync M")
	late.is("ok MAPPED6789", "pread f 0 10")
	late.ok("open fresh %s rdonly", o.file)
	late.is("ok MAPPED6789", "pread fresh 0 10")
	o.locksHeld("without a rule")
	r.recover(g)
	o.locksHeld("recovered")
	same(t, o.before, h.snapshot())
	same(t, o.besideIs, other.snapshot())
	if b, err := os.ReadFile(o.file); err != nil || !strings.HasPrefix(string(b), "MAPPED6789") {
		t.Errorf("the file below: %.10q, %v", b, err)
	}
}

// A graft whose own rules match what is open moves it once.
func TestFilesAreMovedOnce(t *testing.T) {
	r := newRig(t)
	o := openInEveryWay(r)
	g := r.inject(o.h, r.data, "io error=EIO op=read path="+o.file+" ttl=5m")
	stops := map[int]int{}
	for _, s := range g.Report.Stopped {
		stops[s.PID]++
	}
	if len(stops) != 2 || stops[o.h.pid()] != 1 || stops[o.other.pid()] != 1 {
		t.Errorf("stops by process: %v", stops)
	}
	o.h.is("EIO", "pread a 0 10")
	r.recover(g)
	same(t, o.before, o.h.snapshot())
}

// An unlinked file and one without a name come under a rule too.
func TestRuleComesToAFileWithoutAName(t *testing.T) {
	r := newRig(t)
	gone := r.write("gone", "unlinked but open")
	h := r.start()
	h.ok("open gone %s rdwr", gone)
	h.ok("unlink %s", gone)
	h.ok("open tmp %s tmpfile,rdwr", r.data)
	h.ok("write tmp anonymous")
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EACCES op=mkdir ttl=5m")
	u := r.update(g, "io error=EIO op=fsync+read+write ttl=5m")
	if len(u.Report.Swapped) != 2 || len(u.Report.Skipped) > 0 {
		t.Errorf("moved %+v, left %+v", u.Report.Swapped, u.Report.Skipped)
	}
	h.is("EIO", "pread gone 0 10")
	h.is("EIO", "pread tmp 0 10")
	r.update(g, "io error=EACCES op=mkdir ttl=5m")
	h.is("ok unlinked but open", "pread gone 0 100")
	h.is("ok anonymous", "pread tmp 0 100")
	r.recover(g)
	same(t, before, h.snapshot())
}

// A layer over a single file has no other inode to move to: its file always asks the server.
func TestRuleComesToASingleFile(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	g := r.inject(h, p, "io error=EACCES op=fsync ttl=5m")
	h.ok("open late %s rdonly", p)
	u := r.update(g, "io error=EIO op=read ttl=5m path="+p)
	if len(u.Report.Notes)+len(u.Report.Skipped) > 0 {
		t.Errorf("%+v", u.Report)
	}
	h.is("EIO", "pread f 0 10")
	h.is("EIO", "pread late 0 10")
	h.ok("close late")
	r.recover(g)
	same(t, before, h.snapshot())
}

// A file that is open comes under a rule by its new name, or that of its directory.
func TestRenameBringsAnOpenFileUnderARule(t *testing.T) {
	r := newRig(t)
	one, two := r.write("one", "0123456789"), filepath.Join(r.data, "dir", "two")
	if err := os.MkdirAll(filepath.Join(r.data, "bad"), 0o755); err != nil {
		t.Fatal(err)
	}
	h := r.start()
	h.ok("mkdir %s/dir", r.data)
	r.write("dir/two", "0123456789")
	h.ok("open one %s rdwr", one)
	h.ok("open two %s rdwr", two)
	g := r.inject(h, r.data, "io error=EIO op=read ttl=5m path="+r.data+"/bad/**")
	for _, c := range []struct{ file, command string }{{"one", "rename %[1]s/one %[1]s/bad/one"}, {"two", "rename %[1]s/dir %[1]s/bad/dir"}} {
		h.is("ok 0123456789", "pread %s 0 10", c.file)
		h.ok(c.command, r.data)
		for end := time.Now().Add(20 * time.Second); h.do("pread %s 0 10", c.file) != "EIO"; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s is not under the rule%s", c.file, r.logs())
			}
		}
	}
	r.recover(g)
	h.is("ok 0123456789", "pread one 0 10")
	h.is("ok 0123456789", "pread two 0 10")
}

// A process that is stopped for a move while one of its calls waits for a rule does not see EINTR (G18).
func TestMoveEndsAWaitWithoutEINTR(t *testing.T) {
	r := newRig(t)
	f, slow := r.write("f", "0123456789"), r.write("slow", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", f)
	h.ok("open slow %s rdwr", slow)
	before := h.snapshot()
	g := r.inject(h, r.data, "io latency=4m op=read ttl=5m path="+slow)
	answer := h.begin("pread slow 0 10")
	for end := time.Now().Add(20 * time.Second); r.list()[0].Rules[0].Matched == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the read does not come to the layer")
		}
	}
	u := r.update(g, "--keep", "io error=EIO op=read ttl=5m path="+f)
	if len(u.Report.Stopped) == 0 {
		t.Error("nothing was stopped: this test tests nothing")
	}
	if got := <-answer; got != "ok 0123456789" {
		t.Errorf("the read that waited: %q", got)
	}
	h.is("EIO", "pread f 0 10")
	r.recover(g)
	same(t, before, h.snapshot())
}

// In a namespace that others share only the tree gets the faults, and only its files are moved.
func TestMoveInASharedNamespace(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h, other := r.startWith(binaries.holder), r.startWith(binaries.holder)
	g := r.inject(h, r.data, "io error=EACCES op=mkdir ttl=5m")
	h.ok("open f %s rdwr", p)
	other.ok("open f %s rdwr", p)
	u := r.update(g, "io error=EIO op=read ttl=5m")
	if s := u.Report.Stopped; len(s) != 1 || s[0].PID != h.pid() || len(u.Report.Swapped) != 1 || len(u.Report.Notes) > 0 {
		t.Errorf("stopped %+v, moved %+v, notes %q", s, u.Report.Swapped, u.Report.Notes)
	}
	h.is("EIO", "pread f 0 10")
	h.is("EIO", "cat %s", p)
	other.is("ok 0123456789", "pread f 0 10")
	other.is("ok 0123456789", "cat %s", p)
	r.recover(g)
	h.is("ok 0123456789", "pread f 0 10")
	other.is("ok 0123456789", "pread f 0 10")
	for _, x := range []*holder{h, other} {
		if left := onLayer(t, x.pid(), r.data); left != "" {
			t.Errorf("process %d is on a layer still: %s", x.pid(), left)
		}
	}
}

// The server dies after a move, and no other can follow it: the keeper has what the new files stand for, also of files that were opened on the layer.
func TestKillServerAfterAMove(t *testing.T) {
	r := newRig(t)
	r.env = noTakeover
	p, gone := r.write("f", strings.Repeat("0123456789abcdef", 1024)), r.write("gone", "unlinked but open")
	h := r.start()
	h.ok("open f %s rdwr", p)
	h.ok("lseek f 3")
	h.ok("dup f twin")
	h.ok("flock f")
	h.ok("mmap M f 8192 shared")
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EACCES op=mkdir ttl=5m")
	h.ok("open gone %s rdwr", gone)
	h.ok("unlink %s", gone)
	if u := r.update(g, "io error=EIO op=read+write p=0 ttl=5m"); len(u.Report.Swapped) != 4 {
		t.Errorf("moved %+v", u.Report.Swapped)
	}
	r.signal("server", syscall.SIGKILL)
	r.awaitOff(20*time.Second, "still grafted")
	h.is("ok unlinked but open", "pread gone 0 100")
	h.is("ok 0123", "peek M 0 4")
	h.ok("close gone")
	same(t, before, h.snapshot())
}

// G22: a move that fails at whatever step, or whose swapper dies, leaves rules, counters and files as they were.
func TestMoveThatFails(t *testing.T) {
	for _, step := range []string{"scan", "replace", "seize", "stopped", "inject", "stage", "commit", "check", "release", "hand over", "kill:stage", "kill:commit", "kill:release"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.env = []string{failing("swapper move", step)}
			o := openInEveryWay(r)
			g := r.inject(o.h, r.data, "io error=EACCES op=mkdir ttl=5m")
			o.h.is("EACCES", "mkdir %s/d", r.data)
			during := o.h.snapshot()
			out, err := r.run("update", g.ID, "io error=EIO op=read path="+o.file+" ttl=5m")
			if err == nil || !strings.Contains(err.Error(), "change the rules of graft "+g.ID) {
				t.Fatalf("update: %q, %v", out, err)
			}
			t.Log(err)
			l := r.list()
			if len(l) != 1 || l[0].State != keeper.StateActive || len(l[0].Rules) != 1 || l[0].Rules[0].Fired != 1 {
				t.Errorf("after the failure: %+v", l)
			}
			o.h.is("ok 0123456789", "pread a 0 10")
			o.h.is("EACCES", "mkdir %s/d", r.data)
			o.h.is("ok 3", "lseek twin cur")
			o.h.is("ok 0123", "peek M 0 4")
			o.h.is("ok modified", "peek P 4096 8")
			o.locksHeld("after the failure")
			now := o.h.snapshot()
			for k, v := range now {
				// Its name leads to the inode of the files that ask the server by now.
				now[k] = strings.ReplaceAll(v, " (deleted)", "")
			}
			same(t, during, now)
			r.recover(g)
			same(t, o.before, o.h.snapshot())
		})
	}
}

// A POSIX lock stays that was taken through a descriptor of another inode of the file than one that
// is moved and has not the access for it.
func TestLockOfAnotherDescriptorStaysInAMove(t *testing.T) {
	r := newRig(t)
	file := r.write("f", strings.Repeat("0123456789abcdef", 1024))
	h := r.start()
	r.env = []string{failing("swapper move", "scan")}
	g := r.inject(h, r.data, "io error=EACCES op=mkdir ttl=5m")
	h.ok("open a %s rdonly", file)
	if out, err := r.run("update", g.ID, "io error=EIO op=read path="+file+" ttl=5m"); err == nil {
		t.Fatalf("the first move succeeds: %s", out)
	}
	h.ok("open w %s rdwr,append", file) // of another inode
	h.ok("setlk w 2 5")
	moved := r.update(g, "io error=EIO op=read path="+file+" ttl=5m")
	if n := len(moved.Report.Swapped); n != 2 {
		t.Errorf("%d objects moved: %+v", n, moved.Report.Swapped)
	}
	h.is("EIO", "pread a 0 10")
	held := func(when string) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}
		if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil || l.Type != unix.F_WRLCK || l.Start != 2 || l.Len != 5 {
			t.Errorf("%s: the lock seen from outside: %+v, %v", when, l, err)
		}
	}
	held("moved")
	r.recover(g)
	held("recovered")
}
