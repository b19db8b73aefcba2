package process

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// The file system below does not answer closes, and the target's server is killed: none can be started, as that would close the keeper's
// copies of the target's files. Who asks for something gets words, and it is done when the file system answers.
func TestRecoverWithoutAServerWhereClosesHang(t *testing.T) {
	x := newHungCloses(t)
	g := x.inject(x.h, x.data, "io error=EIO op=fsync ttl=5m", "io latency=1ms op=read ttl=5m")
	x.h.is("EIO", "fsync f")
	x.fs.ok("hang closes")
	server := x.serverOf(x.keeperOf(x.h))
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for syscall.Kill(server, 0) == nil { // its keeper reaps it
		time.Sleep(10 * time.Millisecond)
	}
	x.h.ok("behind f 4 6") // a read that waits
	x.othersGoOn()
	const want = "does not answer when a file is closed"
	for range 2 {
		asked := time.Now()
		if out, err := x.run("recover", g.ID); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("recover: %q, %v", out, err)
		}
		if took := time.Since(asked); took > time.Minute {
			t.Errorf("recover said so after %v", took)
		}
	}
	if l := x.list(); len(l) != 2 {
		t.Errorf("grafts: %+v", l)
	}
	x.fs.ok("go")
	x.h.is("ok 456789", "result")
	x.comesOff()
}

// The same with its keeper: faults end, and the server goes on until another keeper can be started.
func TestKeeperIsKilledWhereClosesHang(t *testing.T) {
	x := newHungCloses(t)
	g := x.inject(x.h, x.data, "io error=EIO op=fsync ttl=5m")
	x.h.is("EIO", "fsync f")
	x.fs.ok("hang closes")
	died := x.keeperOf(x.h)
	if err := syscall.Kill(died, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); x.h.do("fsync f") != "ok"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("faults go on%s", x.logs())
		}
	}
	x.othersChange()
	words := fmt.Sprintf("(process %d) does not answer", died)
	if out, err := x.run("ps"); err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(out, x.aside.ID) {
		t.Errorf("ps: %q, %v; want %s", out, err, words)
	}
	if out, err := x.run("recover", g.ID); err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("recover: %q, %v; want %s", out, err, words)
	}
	untraced(t, x.h.pid())
	time.Sleep(6 * time.Second) // longer than a start is waited for
	x.h.is("ok", "fsync f")
	x.h.is("ok abc", "read g 100")
	x.h.ok("lseek g 0")
	x.fs.ok("go")
	x.comesOff()
}

// And with both: the holder cannot start a keeper either, until the file system answers.
func TestKeeperAndServerAreKilledWhereClosesHang(t *testing.T) {
	x := newHungCloses(t)
	x.inject(x.h, x.data, "io error=EIO op=fsync ttl=5m", "io latency=1ms op=read ttl=5m")
	x.h.is("EIO", "fsync f")
	x.fs.ok("hang closes")
	for _, pid := range []int{x.serverOf(x.keeperOf(x.h)), x.keeperOf(x.h)} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	x.h.ok("behind f 4 6") // a read that waits
	x.othersChange()
	if !strings.Contains(x.h.mountinfo(), "fuse.faultgraft") {
		t.Error("somebody has taken the layer off while closes hang")
	}
	x.fs.ok("go")
	x.h.is("ok 456789", "result")
	x.comesOff()
}

// comesOff waits until the layer has come off by itself, and ends the scene.
func (x *hungCloses) comesOff() {
	x.t.Helper()
	x.awaitUnmounted(x.h, time.Minute)
	x.awaitOthersOnly()
	if out, err := x.run("recover", "--all"); err != nil {
		x.t.Errorf("recover: %q, %v", out, err)
	}
	x.end()
}

// awaitOthersOnly waits until the bystander's graft is the only one.
func (x *hungCloses) awaitOthersOnly() {
	x.t.Helper()
	var l []keeper.Graft
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if l = x.list(); len(l) == 1 && l[0].ID == x.aside.ID {
			return
		}
	}
	x.t.Errorf("grafts: %+v%s", l, x.logs())
}

// The server is killed, and the node is stopped: that ends with words, although nobody can follow the server. When the file system answers, what
// waited goes on without faults.
func TestStopWithoutAServerWhereClosesHang(t *testing.T) {
	x := newHungCloses(t)
	g := x.inject(x.h, x.data, "io error=EIO op=fsync ttl=5m")
	x.h.is("EIO", "fsync f")
	x.fs.ok("hang closes")
	server := x.serverOf(x.keeperOf(x.h))
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for syscall.Kill(server, 0) == nil { // its keeper reaps it
		time.Sleep(10 * time.Millisecond)
	}
	waits := x.h.begin("fsync f")
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"release", g.ID}, []string{"no rule holds anything", "does not answer when a file is closed"}},
		{[]string{"stop", "--all", "--reason", "a test"}, []string{g.ID, "no fault is in force", "does not answer when a file is closed"}},
	} {
		cmd := x.command(c.args...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		err := ended(cmd)
		for _, w := range c.words {
			if err == nil || !strings.Contains(out.String(), w) {
				t.Errorf("%q: %v: %s; want %q%s", c.args, err, out.String(), w, x.logs())
			}
		}
	}
	x.other.is("ok", "fsync q") // it is stopped, too
	x.fs.ok("go")
	if got := <-waits; got != "ok" {
		t.Errorf("a call that waited while the node was stopped: %q", got)
	}
	x.awaitOff(time.Minute, "the layer does not come off by itself")
	if out, err := x.run("release"); err != nil {
		t.Errorf("release: %q, %v", out, err)
	}
	x.end()
}
