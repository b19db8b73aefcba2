package process

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
)

// limit sets a limit of a process that runs, of the same hard limit or below, and returns what it was.
func limit(t *testing.T, pid, what int, value uint64) (was unix.Rlimit) {
	t.Helper()
	if err := unix.Prlimit(pid, what, nil, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, what, &unix.Rlimit{Cur: value, Max: was.Max}, nil); err != nil {
		t.Fatal(err)
	}
	return was
}

// descriptors counts those of a process.
func descriptors(t *testing.T, pid int) uint64 {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	top := 0
	for _, e := range all {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err == nil {
			top = max(top, fd)
		}
	}
	return uint64(top + 1)
}

// EMFILE in the agent: who asks waits or is refused, grafts go on, and when descriptors are free it serves again.
func TestAgentOutOfDescriptors(t *testing.T) {
	r := newRig(t)
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "0123456789"))
	before := h.snapshot()
	agent := r.agent()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	was := limit(t, agent.Process.Pid, unix.RLIMIT_NOFILE, descriptors(t, agent.Process.Pid)+2)
	var open []net.Conn
	for range 40 { // the kernel takes them; the agent cannot
		c, err := net.DialTimeout("unix", filepath.Join(r.state, "daemon.sock"), time.Second)
		if err != nil {
			break
		}
		open = append(open, c)
	}
	h.is("EIO", "fsync f")
	for _, c := range open {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	limit(t, agent.Process.Pid, unix.RLIMIT_NOFILE, was.Cur)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := r.run("ps", "-o", "json")
		if err == nil && strings.Contains(c, g.ID) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the agent does not serve again: %q, %v", c, err)
		}
	}
	r.recover(g)
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
}

// EMFILE in the keeper: a graft that needs more descriptors than it may have changes nothing and says so; one that
// is there stays, and comes off as soon as the keeper can.
func TestKeeperOutOfDescriptors(t *testing.T) {
	r := newRig(t)
	h := r.start()
	many, few := filepath.Join(r.data, "many"), filepath.Join(r.data, "few")
	for _, d := range []string{many, few} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 300 {
		h.ok("open m%d %s rdwr", i, r.write(fmt.Sprintf("many/%d", i), "0123456789"))
	}
	h.ok("open f %s rdwr", r.write("few/f", "0123456789"))
	before := h.snapshot()
	g := r.inject(h, few, "io error=EIO op=fsync ttl=5m")
	pids := r.processes("keeper")
	if len(pids) != 1 {
		t.Fatalf("keepers: %v", pids)
	}
	was := limit(t, pids[0], unix.RLIMIT_NOFILE, descriptors(t, pids[0])+40)
	out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", many, "io error=EIO op=fsync ttl=5m")
	if err == nil || !strings.Contains(err.Error(), "RLIMIT_NOFILE") && !strings.Contains(err.Error(), "too many open files") {
		t.Errorf("inject: %q, %v", out, err)
	}
	h.is("ok", "fsync m7")
	h.is("EIO", "fsync f")
	limit(t, pids[0], unix.RLIMIT_NOFILE, was.Cur)
	for end := time.Now().Add(30 * time.Second); len(r.list()) > 1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left: %+v", r.list())
		}
	}
	r.recover(g)
	same(t, before, h.snapshot())
}

// EMFILE in the layer: where its server may have few descriptors, far fewer than the target looks at files, the kernel is asked to
// forget some. The target may be told EMFILE where it is faster than that, but not for long, and never for what it has open.
func TestServerOutOfDescriptors(t *testing.T) {
	r := newRig(t)
	r.prefix = []string{"prlimit", "--nofile=512:512"}
	h := r.start()
	for i := range 20 {
		h.ok("open f%d %s rdwr", i, r.write(fmt.Sprintf("f%d", i), "0123456789"))
	}
	for i := range 800 {
		r.write(fmt.Sprintf("other%d", i), "0123456789")
	}
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	pids := r.processes("server")
	if len(pids) != 1 {
		t.Fatalf("servers: %v", pids)
	}
	var is unix.Rlimit
	if err := unix.Prlimit(pids[0], unix.RLIMIT_NOFILE, nil, &is); err != nil || is.Cur > 512 {
		t.Logf("this machine lets the server have %d descriptors: %v", is.Cur, err) // CAP_SYS_RESOURCE
	}
	for range 2 {
		for i := range 800 {
			for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				got := h.do("stat %s/other%d", r.data, i)
				if got == "ok 10" {
					break
				}
				if got != "EMFILE" || time.Now().After(end) {
					t.Fatalf("stat: %q", got)
				}
			}
		}
	}
	for i := range 20 {
		h.is("ok 0123456789", "pread f%d 0 100", i)
		h.is("EIO", "fsync f%d", i)
	}
	r.recover(g)
	same(t, before, h.snapshot())
}

// Before a server has no descriptor left it is on record, with what can be done: the target, which may have more, would not know why it gets EMFILE.
func TestServerTellsOfFewDescriptors(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	for i := range 40 {
		r.write(fmt.Sprintf("f%d", i), "0123456789")
	}
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	server := r.oneServer()
	has, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", server))
	if err != nil {
		t.Fatal(err)
	}
	limit(t, server, unix.RLIMIT_NOFILE, uint64(2*len(has)))
	told := func() (n int) {
		for _, e := range r.events() {
			if e.Type == keeper.EventServer && e.Graft == g.ID && strings.Contains(e.Message, "CAP_SYS_RESOURCE") {
				n++
			}
		}
		return n
	}
	if n := told(); n != 0 {
		t.Errorf("told of %d times with room", n)
	}
	opened := 0
	for end := time.Now().Add(30 * time.Second); told() == 0; time.Sleep(100 * time.Millisecond) {
		if opened < 40 && h.do("open f%d %s/f%d rdwr", opened, r.data, opened) != "EMFILE" {
			opened++
		}
		if time.Now().After(end) {
			t.Fatalf("nothing is told, with %d descriptors: %+v%s", descriptors(t, server), r.events(), r.logs())
		}
	}
	if !strings.Contains(r.logs(), "CAP_SYS_RESOURCE") {
		t.Errorf("not in the log:%s", r.logs())
	}
	limit(t, server, unix.RLIMIT_NOFILE, 4096)
	r.recover(g)
}

// ENOMEM ends a Go process: with the agent, the keeper or the server gone for want of memory, the target goes on
// without an error, its rules end or go on as after a kill, and the layer comes off.
func TestOutOfMemory(t *testing.T) {
	for _, role := range []string{"agent", "keeper", "server"} {
		t.Run(role, func(t *testing.T) {
			r := newRig(t)
			h := r.start()
			h.ok("open f %s rdwr", r.write("f", "0123456789"))
			h.ok("lseek f 4")
			before := h.snapshot()
			agent := r.agent()
			g := r.inject(h, r.data, "io error=EIO op=fsync p=0 ttl=5m")
			pid := agent.Process.Pid
			if role != "agent" {
				pids := r.processes(role)
				if len(pids) != 1 {
					t.Fatalf("%d processes with role %s", len(pids), role)
				}
				pid = pids[0]
			}
			limit(t, pid, unix.RLIMIT_AS, 1<<20) // it has more already: each further mmap(2) is ENOMEM
			limit(t, pid, unix.RLIMIT_DATA, 1<<20)
			for end := time.Now().Add(60 * time.Second); running(pid) && time.Now().Before(end); {
				h.is("ok", "fsync f")
				h.is("ok 456789", "read f 100")
				h.ok("lseek f 4")
				h.do("stat %s/none", r.data)
				switch role {
				case "agent":
					r.burden("daemon.sock", "/v1/policies")
				case "keeper":
					r.burden("keepers/*/control.sock", "/v1/grafts")
				}
			}
			if running(pid) && role != "server" { // the memory control group ends that in TestServerIsReplaced
				t.Errorf("the %s does not run out of memory", role)
			}
			h.is("ok", "fsync f")
			h.is("ok 456789", "read f 100")
			h.ok("lseek f 4")
			if running(pid) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := r.run("recover", g.ID); err != nil && !strings.Contains(err.Error(), "no such graft") && !strings.Contains(err.Error(), "ended just now") {
				t.Errorf("recover: %q, %v%s", out, err, r.logs())
			}
			r.awaitNone()
			same(t, before, h.snapshot())
		})
	}
}

// burden sends a socket of the state directory large requests, many at a time. None has to be answered.
func (r *rig) burden(socket, path string) {
	r.t.Helper()
	found, err := filepath.Glob(filepath.Join(r.state, socket))
	if err != nil {
		r.t.Fatal(err)
	}
	if len(found) == 0 {
		return // its process has ended
	}
	client := httpTo(found[0])
	defer client.CloseIdleConnections()
	body := `{"path":"` + strings.Repeat("x", 3<<20) + `"}`
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if resp, err := client.Post("http://faultgraft"+path, "application/json", strings.NewReader(body)); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	all.Wait()
}

func httpTo(socket string) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return wire.DialUnix(socket)
	}}}
}

func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}
