package e2e

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// All processes of a layer are killed at once, as a service manager does that ends the control group of whoever called `inject`: the
// container sees ENOTCONN, until the agent has taken the layer off, with nobody's help. One that is started later does it as well.
func TestProcessesOfALayerAreKilled(t *testing.T) {
	for _, c := range []struct {
		name  string
		there bool
	}{{"the agent is there", true}, {"an agent comes later", false}} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t)
			if !c.there {
				s.alone()
			}
			s.run("e2e-unserved")
			s.run("e2e-served")
			g := s.inject("e2e-unserved", "--path", "/data", "io error=EIO op=read ttl=10m")
			other := s.inject("e2e-served", "--path", "/data", "io error=EIO op=read ttl=10m")
			s.killAll(g)
			if out, ok := s.cat("e2e-unserved"); !c.there && (ok || !strings.Contains(out, "not connected")) {
				t.Fatalf("a layer that nobody serves: %q", out)
			}
			if !c.there {
				s.startAgent()
			}
			s.until("the container has its files", func() bool {
				out, ok := s.cat("e2e-unserved")
				return ok && out == "content"
			})
			s.until("the folder of the killed keeper is gone", func() bool { return len(s.keeperFolders()) == 1 })
			if l := s.grafts(); len(l) != 1 || l[0].ID != other.ID || l[0].State != keeper.StateActive {
				t.Errorf("what somebody serves: %+v", l)
			}
			if out, ok := s.cat("e2e-served"); ok {
				t.Errorf("the other container reads %q", out)
			}
			if out := s.faultgraft("events"); !strings.Contains(out, g.ID) || !strings.Contains(out, "all processes that served it were killed") {
				t.Errorf("events: %s", out)
			}
			s.nerdctl("rm", "-f", "e2e-unserved", "e2e-served")
		})
	}
}

func (s *scene) keeperFolders() []string {
	s.Helper()
	all, err := filepath.Glob(filepath.Join(s.state(), "keepers", "pid-*"))
	if err != nil {
		s.Fatal(err)
	}
	return all
}

// killAll kills the keeper of a graft and all that descend from it. They are stopped first, so that none does anything for another's death.
func (s *scene) killAll(g keeper.Graft) {
	s.Helper()
	family := []int{s.keeperOf(g)}
	for more := true; more; {
		more = false
		stats, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			s.Fatal(err)
		}
		for _, stat := range stats {
			b, err := os.ReadFile(stat)
			if err != nil {
				continue // it has ended
			}
			f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
			pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
			parent, err := strconv.Atoi(f[1])
			if perr == nil && err == nil && slices.Contains(family, parent) && !slices.Contains(family, pid) {
				family, more = append(family, pid), true
			}
		}
	}
	if len(family) < 3 {
		s.Fatalf("keeper, server and holder of graft %s: %v", g.ID, family)
	}
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range family {
			if err := syscall.Kill(pid, sig); err != nil {
				s.Fatal(err)
			}
		}
	}
}

// keeperOf is the process that listens on the socket of a graft's keeper.
func (s *scene) keeperOf(g keeper.Graft) int {
	s.Helper()
	sockets, err := filepath.Glob(filepath.Join(s.state(), "keepers", "pid-"+strconv.Itoa(g.Target.PID)+"-*", "control.sock"))
	if err != nil || len(sockets) != 1 {
		s.Fatalf("sockets of the keeper of process %d: %q, %v", g.Target.PID, sockets, err)
	}
	conn, err := wire.DialUnix(sockets[0])
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	peer, err := wire.PeerOf(conn.(*net.UnixConn))
	if err != nil || peer.PID == 0 {
		s.Fatalf("who listens on %s: %+v, %v", sockets[0], peer, err)
	}
	return peer.PID
}
