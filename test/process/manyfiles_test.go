package process

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"golang.org/x/sys/unix"
)

// fewDescriptors is a command that has what it starts have no more descriptors than that, whatever it asks for.
func fewDescriptors(limit int) []string {
	return []string{"setpriv", "--bounding-set=-sys_resource", "prlimit", fmt.Sprintf("--nofile=%d:%d", limit, limit)}
}

// A target has about as many files open as can be grafted, or as the layer can serve, and faultgraft may not raise RLIMIT_NOFILE. The server dies, and none
// follows: every file is back below, and is the very description that it was, also where it was opened meanwhile.
func TestManyFilesWithoutAServer(t *testing.T) {
	const limit = 2000
	for name, c := range map[string]struct {
		before, meanwhile int // files that are opened
		holderDies        bool
	}{
		"as many as can be grafted":       {before: 880},
		"as many as can be served":        {before: 400, meanwhile: 1100},
		"as many, and the holder is dead": {before: 400, meanwhile: 1100, holderDies: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.prefix, r.env = fewDescriptors(limit), slices.Clone(noTakeover)
			h := r.start()
			for i := range c.before {
				how := []string{"rdwr", "rdwr,append", "rdonly", "rdwr,nonblock,cloexec"}[i%4]
				h.ok("open a%d %s %s", i, r.write(fmt.Sprintf("a%d", i), fmt.Sprintf("%04d-before", i)), how)
				h.ok("lseek a%d %d", i, i%5)
			}
			h.ok("flock a1")
			if !c.holderDies { // the one who would know of it
				h.ok("setlk a3 2 5")
			}
			h.ok("unlink %s/a5", r.data)
			before := h.snapshot()
			g := r.inject(h, r.data, "io error=EIO op=read+write+mmap-read p=0 ttl=5m") // it can match: nothing is passed through
			if len(g.Report.Skipped) > 0 || len(g.Report.Swapped) < c.before {
				t.Fatalf("%d objects moved, not %v", len(g.Report.Swapped), g.Report.Skipped)
			}
			many := r.write("many", "0123456789")
			for i := range c.meanwhile {
				h.ok("open b%d %s rdwr", i, many)
				h.ok("lseek b%d %d", i, i%5)
			}
			if c.meanwhile > 0 && !c.holderDies { // else nobody has their lock and their file any more
				h.ok("flock b7")
				h.ok("open gone %s/gone rdwr,creat", r.data)
				h.ok("write gone nameless")
				h.ok("unlink %s/gone", r.data)
			}
			server := r.oneServer()
			t.Logf("the server has %d descriptors of %d", descriptors(t, server), limit)
			if c.holderDies {
				r.killWithHolder(server)
			} else {
				r.killServer(syscall.SIGKILL)
			}
			r.awaitOff(time.Minute, "still grafted")

			if left := onLayer(t, h.pid(), r.data); left != "" {
				t.Errorf("on a layer still: %s", left)
			}
			if c.meanwhile > 0 && !c.holderDies {
				locked(t, many)
				h.is("ok nameless", "pread gone 0 100")
				h.ok("close gone")
			}
			for i := range c.meanwhile {
				h.is("ok "+"0123456789"[i%5:], "read b%d 100", i)
				h.ok("close b%d", i)
			}
			same(t, before, h.snapshot())
			locked(t, r.data+"/a1")
			for i := range c.before {
				h.is("ok "+fmt.Sprintf("%04d-before", i)[i%5:], "read a%d 100", i)
				if i%4 == 1 && i != 5 {
					h.ok("lseek a%d 0", i)
					h.ok("write a%d +more", i)
					content(t, fmt.Sprintf("%s/a%d", r.data, i), fmt.Sprintf("%04d-before+more", i))
				}
			}
		})
	}
}

// locked fails a test if nobody has an exclusive flock on a file.
func locked(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("%s: its flock is not held: %v", path, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// killWithHolder kills a server and its holder, so that the one cannot replace the other.
func (r *rig) killWithHolder(server int) {
	r.t.Helper()
	var holders []int
	for _, l := range r.leftovers() {
		var pid int
		if _, err := fmt.Sscanf(l, "/proc/%d/exe", &pid); err == nil && strings.Contains(l, "fgraft-holder") {
			holders = append(holders, pid)
		}
	}
	if len(holders) != 1 {
		r.t.Fatalf("holders: %v of %q", holders, r.leftovers())
	}
	for _, k := range []struct {
		pid int
		sig syscall.Signal
	}{{server, syscall.SIGSTOP}, {holders[0], syscall.SIGKILL}, {server, syscall.SIGKILL}} {
		if err := syscall.Kill(k.pid, k.sig); err != nil {
			r.t.Fatal(err)
		}
	}
}

// More is open on a dead server's layer than faultgraft may have open itself, so that it cannot come off: it is told, with what can be done, by all
// that tell of a graft, nothing is changed meanwhile, and it comes off as soon as it can.
func TestTooManyFilesWithoutAServer(t *testing.T) {
	const limit, paths = 512, 600
	r := newRig(t)
	r.prefix, r.env = fewDescriptors(limit), slices.Clone(noTakeover)
	h := r.start()
	f := r.write("f", "0123456789")
	h.ok("open f %s rdwr", f)
	h.ok("lseek f 3")
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=read+write+mmap-read p=0 ttl=5m")
	for i := range paths {
		h.ok("open p%d %s path", i, f) // of which the server knows nothing
	}
	r.killServer(syscall.SIGKILL)
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if l := r.list(); len(l) == 1 && l[0].State == keeper.StateFailed && strings.Contains(l[0].Reason, "CAP_SYS_RESOURCE") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("ps does not say why it waits: %+v%s", r.list(), r.logs())
		}
	}
	if _, err := r.run("recover", g.ID); err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(err.Error(), "prlimit --pid") {
		t.Errorf("recover: %v", err)
	}
	told := 0
	for _, e := range r.events() {
		if e.Type == keeper.EventServer && e.Graft == g.ID && strings.Contains(e.Message, "CAP_SYS_RESOURCE") {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times: %+v", told, r.events())
	}
	for i := range paths {
		h.ok("close p%d", i)
	}
	r.awaitOff(time.Minute, "still grafted")
	h.is("ok 3456789", "read f 100")
	h.ok("lseek f 3")
	same(t, before, h.snapshot())
}
