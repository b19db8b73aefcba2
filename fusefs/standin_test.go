package fusefs_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
)

// TestStandIn kills servers with each kind of request that must not be done twice, wherever it may be, and has the layer
// taken off without another server: somebody stands in, the connection is aborted, and what the abort has met is made again
// below. Callers and others see what they would in a plain directory.
func TestStandIn(t *testing.T) {
	resentBothWays(t, func(t *testing.T, noResend bool) {
		for _, k := range resentCases {
			if k.idle || slices.Contains(standInHasNone, k.name) {
				continue
			}
			t.Run(strings.ReplaceAll(k.name, " ", "_"), func(t *testing.T) {
				for _, places := range append(slices.Clone(kills), "recorded") {
					t.Run(strings.ReplaceAll(places, " ", "_"), func(t *testing.T) { standIn(t, &k, strings.Fields(places), noResend) })
				}
			})
		}
	})
}

// standInHasNone are cases that are about more than the one call, or about files that have no name to be opened by afterwards.
var standInHasNone = []string{
	"unlink of an open file", "rename over", "release", "flush", "fsync", "lock", "unlock", "lock and wait", "lock of a description", "flock",
}

func standIn(t *testing.T, k *resentCase, places []string, noResend bool) {
	f := serveFragile(t, true, noResend)
	c, other := f.caller(), f.caller()
	plain, on, below := t.TempDir(), filepath.Join(f.mnt, "case"), filepath.Join(f.back, "case")
	want := c.do(k.name, "prepare", plain+"/case") + c.do(k.name, "act", plain+"/case") + c.do(k.name, "finish", plain+"/case")
	f.setRules("io latency=1us op=getattr") // attributes are not kept: whoever asks for them would wait
	got := c.do(k.name, "prepare", on)
	f.arm(places[0], k.ops)
	acting := c.begin(k.name, "act", on)
	for i := range places {
		if !f.comes(acting, 0) {
			t.Skipf("no request comes to %s", places[i]) // a second server need not come that far
		}
		if i+1 < len(places) {
			next := armed(places[i+1], k.ops, true)
			f.replace(&next)
		}
	}
	f.leave(other, noResend, func() {})
	result := c.wait(acting, "the call")
	c.do(below, "move", on)
	if strings.Contains(result, "ECONNABORTED") || strings.Contains(result, "ENOTCONN") {
		result = c.do(k.name, "act", on)
	}
	if got += result + c.do(k.name, "finish", on); got != want {
		t.Errorf("with a layer that was taken off\n%s\nin a plain directory\n%s", got, want)
	}
}

// What lies below may have to be asked whether a call was done, and not answer: nobody else waits for that, nor do closes.
func TestStandInBesideAHungFile(t *testing.T) {
	resentBothWays(t, func(t *testing.T, noResend bool) {
		f := serveFragile(t, true, noResend)
		c, other := f.caller(), f.caller()
		on := filepath.Join(f.mnt, "case")
		got := c.do("append", "prepare", on) + other.do("release", "prepare", on+"2")
		f.arm("done", "write")
		acting := c.begin("append", "act", on)
		if !f.comes(acting, 0) {
			t.Fatal("no request came")
		}
		closed := make(chan struct{})
		f.closes(other, on+"2", closed)
		f.leave(f.caller(), noResend, func() { <-closed })
		if got += c.wait(acting, "the append"); got != "open f: ok\nopen f: ok\nwrite 5: ok\n" {
			t.Errorf("who appended and who closes: %s", got)
		}
	})
}

// closes has a process close a file of the layer as soon as there is somebody who answers.
func (f *fragile) closes(other *caller, dir string, closed chan<- struct{}) {
	f.Helper()
	closing := other.begin("release", "close", dir)
	go func() {
		<-closing
		close(closed)
	}()
}

// leave kills the server, has somebody stand in for it, and aborts the connection when that one has seen all that there was. other
// is a process that can ask; asked is called when an open file is looked for.
func (f *fragile) leave(other *caller, noResend bool, asked func()) {
	f.Helper()
	f.stopped()
	held := f.hold()
	f.kill()
	dup := func(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3) }
	unanswered, err := f.state.Unanswered(func(fd int) (int, error) {
		here, ok := held[fd]
		if !ok {
			return -1, fmt.Errorf("the server had no descriptor %d", fd)
		}
		return dup(here)
	})
	must(f, err)
	left, err := f.state.Left()
	must(f, err)
	device, err := dup(f.device)
	must(f, err)
	backing, err := unix.Open(f.back, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(f, err)
	settled, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		(&fusefs.StandIn{
			Device: device, Backing: backing, Unanswered: unanswered, NoResend: noResend, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
			Swapper: func(int) bool { return false },
			Description: func(handle uint64) (int, bool) {
				asked()
				i := slices.IndexFunc(left.Files, func(l fusefs.LeftFile) bool { return l.Handle == handle })
				if i < 0 {
					return -1, false
				}
				fd, err := dup(held[left.Files[i].FD])
				return fd, err == nil
			},
		}).Run(func() { close(settled) })
	}()
	// What the dead server had in work comes before this.
	if got := other.do("", "sync", f.mnt); got != "stat: ok\n" {
		f.Errorf("attributes of the root directory: %s", got)
	}
	select {
	case <-settled:
	case <-time.After(patience):
		f.Error("what the dead server had in work is not answered")
	}
	_ = unix.Unmount(f.mnt, unix.MNT_FORCE) // aborts (fuse_umount_begin in fs/fuse/inode.c), and may then find it busy
	<-ended
	for _, fd := range held {
		must(f, unix.Close(fd))
	}
}
