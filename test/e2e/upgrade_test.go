package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/test/lab"
	"github.com/faultgraft/faultgraft/test/programs"
	"github.com/faultgraft/faultgraft/test/soak/recorded"
)

// olderVersion names a real program of an earlier version, in place of one that is built from this tree.
const olderVersion = "FAULTGRAFT_TEST_OLDER"

// unit has lines of contrib/systemd/faultgraft.service.
func (s *scene) unit(key string) string {
	s.Helper()
	b, err := os.ReadFile("../../contrib/systemd/faultgraft.service")
	if err != nil {
		s.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), key+"="); ok {
			return v
		}
	}
	s.Fatalf("the unit has no %s", key)
	return ""
}

// installed is a program that is replaced by others.
type installed struct {
	*scene
	path string
}

func (s *scene) installable() *installed {
	s.Helper()
	return &installed{s, filepath.Join(s.TempDir(), "faultgraft")}
}

// put replaces the program as `make install` does.
func (i *installed) put(program string) {
	i.Helper()
	from, err := os.Open(program)
	if err != nil {
		i.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(i.path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		i.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if cerr := to.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(to.Name(), i.path)
	}
	if err != nil {
		i.Fatal(err)
	}
}

// line runs a line of the unit, with this program in place of the one that it names.
func (i *installed) line(key string) (program string, args []string) {
	i.Helper()
	f := strings.Fields(strings.TrimPrefix(i.unit(key), "-"))
	if f[0] != "/usr/local/bin/faultgraft" {
		i.Fatalf("%s runs %s", key, f[0])
	}
	return i.path, f[1:]
}

func (i *installed) run(args ...string) string {
	i.Helper()
	out, err := i.lab.Run(i.ctx, i.path, args...)
	if err != nil {
		i.Fatal(err)
	}
	return out
}

func (i *installed) agent() int {
	i.Helper()
	program, args := i.line("ExecStart")
	cmd, err := i.lab.Command(i.ctx, program, args...)
	if err != nil {
		i.Fatal(err)
	}
	return i.follow(cmd)
}

// restart is what `systemctl restart faultgraft` does.
func (i *installed) restart(agent int) int {
	i.Helper()
	if mode := i.unit("KillMode"); mode != "process" { // else all that stands by targets would be ended too
		i.Fatalf("KillMode=%s", mode)
	}
	stop(i.T, agent, syscall.SIGTERM)
	program, args := i.line("ExecStopPost")
	if out, err := i.lab.Run(i.ctx, program, args...); err != nil || out != "" {
		i.Errorf("ExecStopPost: %q, %v", out, err)
	}
	return i.agent()
}

func (i *installed) list() (all []keeper.Graft) {
	i.Helper()
	if err := json.Unmarshal([]byte(i.run("ps", "-o", "json")), &all); err != nil {
		i.Fatal(err)
	}
	return all
}

// rulesOf are the rules of a graft, each with its end.
func rulesOf(g keeper.Graft) (all []string) {
	for _, r := range g.Rules {
		all = append(all, fmt.Sprintf("%s: %s, until %s", r.Name, r.Text, r.Expires))
	}
	return all
}

// changes are the events of rules that were changed in place.
func (i *installed) changes() (all []string) {
	i.Helper()
	for line := range strings.Lines(i.run("events", "-o", "json")) {
		var e keeper.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			i.Fatalf("event %q: %v", line, err)
		}
		if e.Type == keeper.EventRules {
			all = append(all, line)
		}
	}
	return all
}

// alone has an agent by hand in place of the one that containerd launched, until the test's end.
func (s *scene) alone() {
	s.Helper()
	launched := s.agent()
	if launched == 0 {
		s.Fatal("containerd has launched no agent")
	}
	stop(s.T, launched, syscall.SIGTERM)
	s.Cleanup(func() { // before the scene looks for what is left
		if err := s.lab.Restart(s.ctx); err != nil { // containerd launches its agent again
			s.Error(err)
		}
		var err error
		if s.before, err = s.lab.Snapshot(); err != nil { // a new containerd with a new agent, and nothing else
			s.Error(err)
		}
		if n := len(s.grafts()); n > 0 {
			s.Errorf("%d grafts are left", n)
		}
	})
}

// until waits for a condition.
func (s *scene) until(what string, is func() bool) {
	s.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("not in time: %s; ps: %+v", what, s.grafts())
		}
	}
}

// An upgrade in place, under load: the program is replaced on disk and the service restarted. Grafts by label, by policy and by
// inject go on, with the version that made them; the new agent has them all, changes and ends them. A program that works
// on one of them all the time sees no error but its rule's, and no call of it is lost or done twice.
func TestUpgradeUnderLoad(t *testing.T) {
	older := os.Getenv(olderVersion)
	if older == "" {
		older = programs.MustVersion(t, programs.Version{Name: "v0.1.0-before"})
	}
	newer, recorder := programs.MustVersion(t, programs.Version{Name: "v0.2.0-after"}), programs.MustGo(t, "test/soak/recorder")
	s := newScene(t)
	s.alone()
	program := s.installable()
	program.put(older)
	agent := program.agent()
	version := program.health().Version

	work := s.TempDir() // of the container: a volume, the program, and where that says what it has seen
	volume, status := filepath.Join(work, "volume"), filepath.Join(work, "status")
	for _, d := range []string{volume, status} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.Cleanup(func() { _, _ = s.lab.Nerdctl(s.ctx, "rm", "-f", "e2e-upgrade") })
	id := s.nerdctl("run", "-d", "--name", "e2e-upgrade", "--net", "none", "--label", "wal.faultgraft.io=io error=EIO op=write path=/data/faulty/** p=20% ttl=30m",
		"-v", volume+":/data", "-v", status+":/status", "-v", recorder+":/recorder", lab.Image, "/recorder", "/data", "/status/now", "EIO")
	seen := func() recorded.Status {
		t.Helper()
		r, err := recorded.ReadNow(filepath.Join(status, "now"), walkDeadline)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Wrong) > 0 {
			t.Fatalf("the program saw: %q", r.Wrong)
		}
		return r
	}
	// works has the program do more from now on; it returns when that was, and what had been done in the end.
	works := func(when string, faults bool) (now recorded.Time, r recorded.Status) {
		t.Helper()
		now = recorded.Now()
		was := seen()
		s.until("the program works "+when, func() bool {
			r = seen()
			return r.Operations > was.Operations+200 && r.Faulty > was.Faulty+20 && (!faults || r.FaultyCall >= now)
		})
		return now, r
	}
	s.await(id, keeper.StateActive)
	s.run("e2e-upgrade-policy", "app=e2e-policy")
	program.run("apply", "-f", s.policyFile("upgrade", "  mode: all", "  timing: {ttl: 30m}"))
	injectID, _ := s.run("e2e-upgrade-inject")
	program.run("inject", "e2e-upgrade-inject", "--path", "/data", readFault)
	s.targets("upgrade", map[policies.TargetState]int{policies.TargetActive: 1})
	works("before the upgrade", true)
	before, rules := map[string]string{}, map[string][]string{}
	for _, g := range program.list() {
		before[g.Target.ID], rules[g.ID] = g.ID, rulesOf(g)
	}
	if len(before) != 3 {
		t.Fatalf("grafts before the upgrade: %v", before)
	}
	changes := program.changes()

	program.put(newer)
	agent = program.restart(agent)
	if h := program.health(); h.Version != "v0.2.0-after" || h.PID != agent {
		t.Errorf("the agent is %+v", h)
	}
	s.targets("upgrade", map[policies.TargetState]int{policies.TargetActive: 1})
	works("after the upgrade", true)
	for _, name := range []string{"e2e-upgrade-policy", "e2e-upgrade-inject"} {
		if out, ok := s.cat(name); ok {
			t.Errorf("%s reads %q", name, out)
		}
	}
	// A container that starts now gets the new version; by then the agent has looked at the others.
	newID, _ := s.run("e2e-upgrade-new", "wal.faultgraft.io="+readFault)
	s.await(newID, keeper.StateActive)
	for _, g := range program.list() {
		switch {
		case g.Target.ID == newID:
			if g.Version != "v0.2.0-after" {
				t.Errorf("a new graft is of version %q", g.Version)
			}
		case g.State != keeper.StateActive || g.ID != before[g.Target.ID] || os.Getenv(olderVersion) == "" && g.Version != version:
			t.Errorf("graft %s of %s, of version %q, became %+v", before[g.Target.ID], g.Target.Name, version, g)
		case !slices.Equal(rules[g.ID], rulesOf(g)):
			t.Errorf("graft %s of %s had the rules %q, and has %q", g.ID, g.Target.Name, rules[g.ID], rulesOf(g))
		}
	}
	if now := program.changes(); len(now) != len(changes) {
		t.Errorf("the new agent has changed rules that are what is wanted: %q", now[len(changes):])
	}

	// The new agent changes what the old keeper has.
	if _, err := s.lab.Ctr(s.ctx, "containers", "label", id, "slow.faultgraft.io=io latency=1ms op=read+write path=/data/faulty/** ttl=30m"); err != nil {
		t.Fatal(err)
	}
	s.until("the new label is followed", func() bool {
		return slices.ContainsFunc(program.list(), func(g keeper.Graft) bool { return g.ID == before[id] && len(g.Rules) == 2 })
	})
	works("with another rule", true)
	program.run("delete", "upgrade")
	s.until("the policy's graft is off", func() bool { out, ok := s.cat("e2e-upgrade-policy"); return ok && out == "content" })
	program.run("recover", before[injectID])
	if out, ok := s.cat("e2e-upgrade-inject"); !ok || out != "content" {
		t.Errorf("recovered: %q", out)
	}
	program.run("recover", "--all")
	if from, r := works("without a layer", false); r.FaultyCall >= from {
		t.Errorf("after recover a call met a fault that was made %s later: %+v", time.Duration(r.FaultyCall-from), r)
	}
	stop(t, agent, syscall.SIGTERM)
	program.run("purge")
	s.nerdctl("rm", "-f", "e2e-upgrade", "e2e-upgrade-policy", "e2e-upgrade-inject", "e2e-upgrade-new")
}

func (i *installed) health() (h plugin.Health) {
	i.Helper()
	state, err := i.lab.Path("/run/faultgraft")
	if err != nil {
		i.Fatal(err)
	}
	i.until("the agent answers", func() bool {
		h, err = plugin.NewClient(state).Health(i.ctx)
		return err == nil
	})
	return h
}

// Dead man: an agent that does nothing any more, or none, keeps no fault alive. The rules of labels, policies and persons end with
// their ttl, and the layers come off. When the agent goes on, it does not begin again.
func TestTTLEndsWithoutTheAgent(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"stopped": syscall.SIGSTOP, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.alone()
			agent := s.startAgent()
			s.Cleanup(func() { _ = syscall.Kill(agent, syscall.SIGCONT) }) // before anything is asked of it
			const rule = "io error=EIO op=read path=/data/** ttl=30s"
			labelled, _ := s.run("e2e-ttl-label", "wal.faultgraft.io="+rule)
			s.await(labelled, keeper.StateActive)
			chosen, _ := s.run("e2e-ttl-policy", "app=e2e-policy")
			s.faultgraft("apply", "-f", s.policyFile("ttl", "  mode: all", "  timing: {ttl: 30s}"))
			s.await(chosen, keeper.StateActive)
			if err := syscall.Kill(agent, sig); err != nil {
				t.Fatal(err)
			}
			state, err := s.lab.Path("/run/faultgraft")
			if err != nil {
				t.Fatal(err)
			}
			keepers := &keeper.Client{StateDir: state} // ps would ask the agent too
			s.until("all layers are off", func() bool {
				l, err := keepers.List(s.ctx)
				return err == nil && len(l) == 0
			})
			for _, n := range []string{"e2e-ttl-label", "e2e-ttl-policy"} {
				if out, ok := s.cat(n); !ok || out != "content" {
					t.Errorf("%s after the ttl: %q", n, out)
				}
			}
			if sig == syscall.SIGSTOP {
				if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", agent)); err != nil || !strings.Contains(string(b), ") T ") {
					t.Errorf("the agent did not stand still all the time: %s %v", b, err)
				}
				if err := syscall.Kill(agent, syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
			} else {
				agent = s.startAgent()
			}
			// A container that starts now is grafted: by then the agent has looked at the others.
			other, _ := s.run("e2e-ttl-new", "wal.faultgraft.io="+readFault)
			s.await(other, keeper.StateActive)
			for _, g := range s.grafts() {
				if g.Target.ID != other {
					t.Errorf("it begins again: %+v", g)
				}
			}
			stop(t, agent, syscall.SIGTERM)
			s.faultgraft("purge")
			s.nerdctl("rm", "-f", "e2e-ttl-label", "e2e-ttl-policy", "e2e-ttl-new")
		})
	}
}
