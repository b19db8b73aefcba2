package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/lab"
)

// session is a shell of a container that reads commands.
type session struct {
	*scene
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	// pid is the shell's on the machine.
	pid int
}

// session starts a shell by `nerdctl exec` with these options and command. $$ in
// a PID namespace of its own is 1, so the shell is found by the file that it holds as descriptor 9.
func (s *scene) session(options []string, container string, command ...string) *session {
	s.Helper()
	args := append([]string{"exec", "-i"}, options...)
	cmd, err := s.lab.Command(s.ctx, "nerdctl", append(append(args, container), command...)...)
	if err != nil {
		s.Fatal(err)
	}
	x := &session{scene: s, cmd: cmd}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	x.out = bufio.NewReader(out)
	if x.in, err = cmd.StdinPipe(); err != nil {
		s.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := errors.Join(x.in.Close(), cmd.Wait()); err != nil { // a shell ends with its input
			s.Errorf("session %q: %v: %s", command, err, said.String())
		}
	})
	mark := fmt.Sprintf("/tmp/session-%p", x)
	if out := x.run("exec 9>" + mark + " && echo open"); out != "open" {
		s.Fatalf("session %q: %q", command, out)
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/9")
	if err != nil {
		s.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && to == mark {
			if _, err := fmt.Sscanf(l, "/proc/%d/", &x.pid); err != nil {
				s.Fatal(err)
			}
		}
	}
	if x.pid == 0 {
		s.Fatalf("session %q: its shell is not found", command)
	}
	return x
}

// run runs a command line and returns what it and the shell wrote.
func (x *session) run(line string) string {
	x.Helper()
	if _, err := fmt.Fprintf(x.in, "{ %s; } 2>&1; echo; echo --end--\n", line); err != nil {
		x.Fatalf("%s: %v", line, err)
	}
	var b strings.Builder
	for {
		l, err := x.out.ReadString('\n')
		if err != nil {
			x.Fatalf("%s: %v after %q", line, err, b.String())
		}
		if l == "--end--\n" {
			return strings.TrimSpace(b.String())
		}
		b.WriteString(l)
	}
}

// Shells that came into a container by `nerdctl exec`, as another user than its
// first process or in a PID namespace of their own, are of the container: their
// files and folders are moved onto the layer and back, under the seccomp
// profile that nerdctl gives every container.
func TestExecSessions(t *testing.T) {
	s := newScene(t)
	data := s.volume()
	if err := errors.Join(os.Chmod(data, 0o777), os.Mkdir(filepath.Join(data, "d"), 0o755), os.WriteFile(filepath.Join(data, "d", "g"), []byte("below"), 0o644)); err != nil {
		t.Fatal(err)
	}
	const name = "e2e-sessions"
	t.Cleanup(func() { s.nerdctl("rm", "-f", name) })
	// CAP_SYS_ADMIN for unshare(1) of the session that asks for a namespace of its own
	s.nerdctl("run", "-d", "--name", name, "--net", "none", "-v", data+":/data", "--user", "1000:1000", "--cap-add", "SYS_ADMIN", lab.Image, "sleep", "1000")

	sessions := map[string]*session{
		"of the container's user": s.session([]string{"-w", "/data/d"}, name, "sh"),
		"of another user":         s.session([]string{"-u", "2000:2000"}, name, "sh"),
		"nested":                  s.session([]string{"-u", "0:0"}, name, "unshare", "-p", "-f", "sh"),
	}
	var pids []int
	for what, x := range sessions {
		if out := x.run("cd /data/d && exec 5</data/f 6>>/data/log.$$ && pwd"); out != "/data/d" {
			t.Fatalf("%s: %q", what, out)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", x.pid))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(status), "\nSeccomp:\t2\n") {
			t.Errorf("%s: no seccomp filter:\n%s", what, status)
		}
		pids = append(pids, x.pid)
	}
	if out := sessions["nested"].run("echo $$"); out != "1" {
		t.Errorf("the nested shell is process %s of its namespace, not the first", out)
	}
	before, err := s.lab.Snapshot(pids...)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		graft := s.inject(name, "--path", "/data", "--require-all", "io error=EIO op=read ttl=5m", "io error=ENOSPC op=write path=/data/log.* ttl=5m")
		stopped := map[int]bool{}
		for _, p := range graft.Report.Stopped {
			stopped[p.PID] = true
		}
		for what, x := range sessions {
			if !stopped[x.pid] {
				t.Errorf("%s: process %d was not stopped: %+v", what, x.pid, graft.Report.Stopped)
			}
			for _, c := range [][2]string{
				{"head -c 3 <&5", "Input/output error"}, // the open file
				{"cat g", "Input/output error"},         // by the working folder
				{"echo x >&6", "No space left"},         // opened for appending
				{"ls", "g"},                             // no rule for this
				{"cat /tmp/nowhere", "No such file"},    // elsewhere
			} {
				if out := x.run(c[0]); !strings.Contains(out, c[1]) {
					t.Errorf("round %d, %s: %s: %q, want %q", round, what, c[0], out, c[1])
				}
			}
		}
		if _, err := s.lab.Faultgraft(s.ctx, "recover", graft.ID); err != nil {
			t.Fatal(err)
		}
		for what, x := range sessions {
			for _, c := range [][2]string{
				{"head -c 3 <&5", "con"},
				{"cat g", "below"},
				{"echo round >&6; cat /data/log.$$ | wc -l", fmt.Sprint(round + 1)},
				{"pwd; exec 5</data/f", "/data/d"},
			} {
				if out := x.run(c[0]); out != c[1] {
					t.Errorf("round %d, recovered, %s: %s: %q, want %q", round, what, c[0], out, c[1])
				}
			}
		}
		if left, err := s.lab.Settle(s.ctx, before); err != nil || len(left) > 0 {
			t.Fatalf("round %d: not as before: %v %q", round, err, left)
		}
	}
}

// inject grafts by the command and returns what it says.
func (s *scene) inject(args ...string) keeper.Graft {
	s.Helper()
	out, err := s.lab.Faultgraft(s.ctx, append(append([]string{"inject"}, args...), "-o", "json")...)
	if err != nil {
		s.Fatal(err)
	}
	var g []keeper.Graft
	if err := json.Unmarshal([]byte(out), &g); err != nil || len(g) != 1 || g[0].Report == nil {
		s.Fatalf("inject: %v in %q", err, out)
	}
	return g[0]
}
