package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
)

// scenario brings an agent to points, at each of which it dies.
type scenario struct {
	name   string
	points []string
	// run gives the rules that are to be in force after the next agent's start.
	run func(*death) []string
	// alone: what a death leaves is also recovered at once, without another agent.
	alone bool
	// recurs: a schedule has it begin anew, whatever was recovered.
	recurs bool
}

// The state file points are those of the memory, of the counters or of the policies, as the scenario has it.
var scenarios = []scenario{
	{"starts", []string{"agent start.folder", "agent start.swept", "agent start.adopted", "agent start.listening", "agent start.known"}, (*death).starts, false, false},
	{"finds a container", []string{"agent apply.remembered", "agent apply.grafted", "agent apply.saved", "file.written", "file.renamed"}, (*death).finds, true, false},
	{"follows a new label", []string{"agent apply.remembered", "agent apply.changed", "agent apply.saved", "file.written", "file.renamed"}, (*death).followsNew, true, false},
	{"follows a label that goes", []string{"agent apply.recovered", "agent apply.saved", "file.written"}, (*death).followsGone, true, false},
	{"sees a container end", []string{"agent forget.saved"}, (*death).seesTheEnd, true, false},
	{"counts what is over", []string{"agent count.saved", "agent count.forgotten", "file.written", "file.renamed"}, (*death).counts, true, false},
	{"is told to end", []string{"agent end.deaf", "agent end.disarmed", "agent end.rested"}, (*death).ends, false, false},
	{"applies a policy", []string{"agent policies.saved", "agent policies.logged", "agent policies.told", "agent apply.remembered", "agent apply.grafted", "agent apply.saved", "file.written", "file.renamed"}, (*death).applies, false, false},
	{"pauses a policy", []string{"agent policies.saved", "agent policies.logged", "agent policies.told", "agent apply.recovered", "agent apply.saved", "file.written"}, (*death).pauses, false, false},
	{"resumes a policy", []string{"agent policies.saved", "agent policies.told", "agent apply.remembered", "agent apply.grafted", "file.written"}, (*death).resumes, false, false},
	{"deletes a policy", []string{"agent policies.saved", "agent policies.logged", "agent policies.told", "agent apply.recovered", "file.written"}, (*death).deletes, false, false},
	{"ends a policy whose time is up", []string{"agent policies.saved", "agent policies.told"}, (*death).expires, false, false},
	{"begins a policy at its time", []string{"agent policies.saved", "agent policies.told", "agent apply.grafted"}, (*death).fires, false, true},
	{"stops the node", []string{"stop.forbidden", "stop.listed", "stop.reverted", "file.written"}, (*death).stops, false, false},
	{"releases the node", []string{"release.reopened", "release.lifted"}, (*death).releases, false, false},
}

// afterAGraft are the points before which a layer was put on or changed: what is recovered then is over, also for the next agent.
var afterAGraft = []string{"agent apply.changed", "agent apply.grafted", "agent apply.saved"}

const (
	wal  = "io error=EIO op=fsync path=/data/faulty*/** ttl=10m"
	full = "io error=EIO op=mkdir path=/data/faulty*/** ttl=10m"
)

// grafted is an agent that has carried a label out, and dies from here on.
func (d *death) grafted() keeper.Graft {
	d.Helper()
	d.label("wal=" + wal)
	d.start()
	d.want("wal")
	g := d.settles()
	d.meetsFaults()
	d.arm()
	return g
}

// meetsFaults waits until the program has met more faults.
func (d *death) meetsFaults() {
	d.Helper()
	had := d.recorded(d.T).Faults["EIO"]
	for end := time.Now().Add(walkDeadline); d.recorded(d.T).Faults["EIO"] == had; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			d.Fatal("the program meets no fault")
		}
	}
}

func (d *death) starts() []string {
	d.grafted()
	if err := d.agent.Process.Kill(); err != nil {
		d.Fatal(err)
	}
	<-d.ended
	d.startArmed()
	return []string{"wal"}
}

func (d *death) finds() []string {
	d.label("wal=" + wal)
	d.startArmed()
	return []string{"wal"}
}

func (d *death) followsNew() []string {
	d.grafted()
	d.label("wal="+wal, "full="+full)
	d.dies()
	return []string{"wal", "full"}
}

func (d *death) followsGone() []string {
	d.grafted()
	d.label()
	d.dies()
	return nil
}

func (d *death) seesTheEnd() []string {
	d.grafted()
	d.ctr(d.T, "task", "kill", "-s", "KILL", walked)
	d.dies()
	d.label()
	d.restart(d.T)
	d.restarted = true
	return nil
}

func (d *death) counts() []string {
	g := d.grafted()
	if err := os.WriteFile(d.mark, nil, 0o600); err != nil { // not before the count
		d.Fatal(err)
	}
	if out, err := d.run("recover", g.ID); err != nil {
		d.Fatalf("recover: %s, %v", out, err)
	}
	if err := d.looked(); err != nil { // and has seen that the graft is gone
		d.Fatal(err)
	}
	d.arm()
	_, _ = d.client().Metrics(d.ctx) // it dies of that
	d.dies()
	return nil
}

func (d *death) ends() []string {
	d.grafted()
	if err := d.agent.Process.Signal(syscall.SIGTERM); err != nil {
		d.Fatal(err)
	}
	d.dies()
	return []string{"wal"}
}

// policy is one for the walked container; its rule is "policed".
func (d *death) policy(spec ...string) string {
	if len(spec) == 0 {
		spec = []string{"timing: {ttl: 10m}"}
	}
	return `apiVersion: faultgraft.io/v1alpha1
kind: FaultPolicy
metadata: {name: e2e-walk}
spec:
  selector: {matchLabels: {app: e2e-policy}}
  faults: [{name: policed, io: {path: "/data/faulty*/**", ops: [fsync], error: EIO}}]
  ` + strings.Join(spec, "\n  ") + "\n"
}

// policed is an agent that has a policy in force, and dies from here on.
func (d *death) policed() {
	d.Helper()
	d.start()
	if _, err := d.client().ApplyPolicies(d.ctx, "-", []byte(d.policy()), false); err != nil {
		d.Fatal(err)
	}
	d.want("policed")
	d.settles()
	d.meetsFaults()
	d.arm()
}

// phase is what the file says of the policy; empty: there is none of it.
func (d *death) phase() policies.Phase {
	d.Helper()
	b, err := os.ReadFile(filepath.Join(d.state(), policies.FileName))
	if err != nil && !os.IsNotExist(err) {
		d.Fatal(err)
	}
	for _, p := range []policies.Phase{policies.Pending, policies.Running, policies.Paused, policies.Waiting, policies.Stopped, policies.Ended} {
		if strings.Contains(string(b), fmt.Sprintf(`"phase":%q`, p)) {
			return p
		}
	}
	return ""
}

// becomes checks what the file says after the death: the change, or, where it had not come to that, what was before.
func (d *death) becomes(changed, before policies.Phase) []string {
	d.Helper()
	want := changed
	if d.point == "file.written" {
		want = before
	}
	if is := d.phase(); is != want {
		d.Errorf("the policy is %q after the death at %s, want %q", is, d.point, want)
	}
	if want == policies.Running {
		return []string{"policed"}
	}
	return nil
}

func (d *death) applies() []string {
	d.start()
	d.arm()
	_, _ = d.client().ApplyPolicies(d.ctx, "-", []byte(d.policy()), false) // the agent dies meanwhile, or after it
	d.dies()
	return d.becomes(policies.Running, "")
}

func (d *death) pauses() []string {
	d.policed()
	_, _ = d.client().PausePolicy(d.ctx, "e2e-walk") // as above
	d.dies()
	return d.becomes(policies.Paused, policies.Running)
}

func (d *death) resumes() []string {
	d.start()
	if _, err := d.client().ApplyPolicies(d.ctx, "-", []byte(d.policy("paused: true", "timing: {ttl: 10m}")), false); err != nil {
		d.Fatal(err)
	}
	d.arm()
	_, _ = d.client().ResumePolicy(d.ctx, "e2e-walk") // as above
	d.dies()
	return d.becomes(policies.Running, policies.Paused)
}

func (d *death) deletes() []string {
	d.policed()
	_, _ = d.client().DeletePolicy(d.ctx, "e2e-walk") // as above
	d.dies()
	return d.becomes("", policies.Running)
}

func (d *death) expires() []string {
	d.start()
	if _, err := d.client().ApplyPolicies(d.ctx, "-", []byte(d.policy("timing: {ttl: 1s}")), false); err != nil {
		d.Fatal(err)
	}
	d.arm()
	d.dies()
	return nil
}

func (d *death) fires() []string {
	d.start()
	if _, err := d.client().ApplyPolicies(d.ctx, "-", []byte(d.policy(`timing: {schedule: "@every 2s", ttl: 10m}`)), false); err != nil {
		d.Fatal(err)
	}
	d.arm()
	d.dies()
	return []string{"policed"}
}

func (d *death) stops() []string {
	g := d.grafted()
	_, _ = d.client().Stop(d.ctx, "a test") // as above
	d.dies()
	mark, err := keeper.ReadStopped(d.state())
	switch {
	case err != nil:
		d.Fatal(err)
	case mark == nil && d.point != "file.written":
		d.Error("the node is not stopped")
	case mark == nil:
		return []string{"wal"}
	}
	d.startWith()
	d.want()
	d.ready()
	if d.point != "stop.reverted" { // what the dead one did not come to
		if _, err := d.client().Stop(d.ctx, "a test"); err != nil {
			d.Errorf("stop once more: %v", err)
		}
	}
	d.settles()
	if mark, err = keeper.ReadStopped(d.state()); err != nil || len(mark.Grafts) != 1 || mark.Grafts[0] != g.ID {
		d.Errorf("%s was taken off for the stop, of which this is known: %+v, %v", g.ID, mark, err)
	}
	if _, err := d.client().Release(d.ctx); err != nil {
		d.Errorf("release: %v", err)
	}
	d.want("wal")
	d.settles()
	d.killAgent()
	return []string{"wal"}
}

func (d *death) releases() []string {
	d.label("wal=" + wal)
	d.start()
	d.want("wal")
	d.settles()
	if _, err := d.client().Stop(d.ctx, "a test"); err != nil {
		d.Fatal(err)
	}
	d.arm()
	_, _ = d.client().Release(d.ctx) // as above
	d.dies()
	if out, err := d.run("release"); err != nil && !strings.Contains(out, "not stopped") {
		d.Errorf("release once more: %s, %v", out, err)
	}
	return []string{"wal"}
}

func (d *death) killAgent() {
	d.Helper()
	if err := d.agent.Process.Kill(); err != nil {
		d.Fatal(err)
	}
	<-d.ended
	d.agent = nil
}
