package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/test/deaths"
	"github.com/faultgraft/faultgraft/test/soak/recorded"
)

// The state file points are those of the memory, of the counters or of the policies, as the scenario has it.
var scenarios = []deaths.Scenario[*death]{
	{Name: "starts", Points: []string{"agent start.folder", "agent start.swept", "agent start.adopted", "agent start.listening", "agent start.known"}, Run: (*death).starts},
	{Name: "finds a container", Points: []string{"agent apply.remembered", "agent apply.grafted", "agent apply.saved", "file.written", "file.renamed"}, Run: (*death).finds, Alone: true},
	{Name: "follows a new label", Points: []string{"agent apply.remembered", "agent apply.changed", "agent apply.saved", "file.written", "file.renamed"}, Run: (*death).followsNew, Alone: true},
	{Name: "follows a label that goes", Points: []string{"agent apply.recovered", "agent apply.saved", "file.written"}, Run: (*death).followsGone, Alone: true},
	{Name: "sees a container end", Points: []string{"agent forget.saved"}, Run: (*death).seesTheEnd, Alone: true},
	{Name: "counts what is over", Points: []string{"agent count.saved", "agent count.forgotten", "file.written", "file.renamed"}, Run: (*death).counts, Alone: true},
	{Name: "is told to end", Points: []string{"agent end.deaf", "agent end.disarmed", "agent end.rested"}, Run: (*death).ends},
	{Name: "applies a policy", Points: []string{"agent policies.saved", "agent policies.logged", "agent policies.told", "agent apply.remembered", "agent apply.grafted", "agent apply.saved", "file.written", "file.renamed"}, Run: (*death).applies},
	{Name: "pauses a policy", Points: []string{"agent policies.saved", "agent policies.logged", "agent policies.told", "agent apply.recovered", "agent apply.saved", "file.written"}, Run: (*death).pauses},
	{Name: "resumes a policy", Points: []string{"agent policies.saved", "agent policies.told", "agent apply.remembered", "agent apply.grafted", "file.written"}, Run: (*death).resumes},
	{Name: "deletes a policy", Points: []string{"agent policies.saved", "agent policies.logged", "agent policies.told", "agent apply.recovered", "file.written"}, Run: (*death).deletes},
	{Name: "ends a policy whose time is up", Points: []string{"agent policies.saved", "agent policies.told"}, Run: (*death).expires},
	{Name: "begins a policy at its time", Points: []string{"agent policies.saved", "agent policies.told", "agent apply.grafted"}, Run: (*death).fires, Recurs: true},
	{Name: "stops the node", Points: []string{"stop.forbidden", "stop.listed", "stop.reverted", "file.written"}, Run: (*death).stops},
	{Name: "releases the node", Points: []string{"release.reopened", "release.lifted"}, Run: (*death).releases},
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
	d.StartMortal()
	d.Want("wal")
	g := d.settles()
	d.meetsFaults()
	d.Arm()
	return g
}

// meetsFaults waits until the program has met more faults.
func (d *death) meetsFaults() {
	d.Helper()
	now := recorded.Now()
	for end := time.Now().Add(walkDeadline); d.recorded(d.T).FaultyCall < now; {
		if time.Now().After(end) {
			d.Fatal("the program meets no fault")
		}
	}
}

func (d *death) starts() []string {
	d.grafted()
	d.Kill()
	d.StartArmed()
	return []string{"wal"}
}

func (d *death) finds() []string {
	d.label("wal=" + wal)
	d.StartArmed()
	return []string{"wal"}
}

func (d *death) followsNew() []string {
	d.grafted()
	d.label("wal="+wal, "full="+full)
	d.Dies()
	return []string{"wal", "full"}
}

func (d *death) followsGone() []string {
	d.grafted()
	d.label()
	d.Dies()
	return nil
}

func (d *death) seesTheEnd() []string {
	d.grafted()
	d.ctr(d.T, "task", "kill", "-s", "KILL", walked)
	d.Dies()
	d.label()
	d.restart(d.T)
	d.restarted = true
	return nil
}

func (d *death) counts() []string {
	g := d.grafted()
	d.Spare() // not before the count
	if out, err := d.Faultgraft("recover", g.ID); err != nil {
		d.Fatalf("recover: %s, %v", out, err)
	}
	if err := d.looked(); err != nil { // and has seen that the graft is gone
		d.Fatal(err)
	}
	d.Arm()
	_, _ = d.Client().Metrics(d.ctx) // it dies of that
	d.Dies()
	return nil
}

func (d *death) ends() []string {
	d.grafted()
	d.Terminate()
	d.Dies()
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
	d.StartMortal()
	if _, err := d.Client().ApplyPolicies(d.ctx, "-", []byte(d.policy()), false); err != nil {
		d.Fatal(err)
	}
	d.Want("policed")
	d.settles()
	d.meetsFaults()
	d.Arm()
}

// phase is what the file says of the policy; empty: there is none of it.
func (d *death) phase() policies.Phase {
	d.Helper()
	b, err := os.ReadFile(filepath.Join(d.State, policies.FileName))
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
	if d.Point == "file.written" {
		want = before
	}
	if is := d.phase(); is != want {
		d.Errorf("the policy is %q after the death at %s, want %q", is, d.Point, want)
	}
	if want == policies.Running {
		return []string{"policed"}
	}
	return nil
}

func (d *death) applies() []string {
	d.StartMortal()
	d.Arm()
	_, _ = d.Client().ApplyPolicies(d.ctx, "-", []byte(d.policy()), false) // the agent dies meanwhile, or after it
	d.Dies()
	return d.becomes(policies.Running, "")
}

func (d *death) pauses() []string {
	d.policed()
	_, _ = d.Client().PausePolicy(d.ctx, "e2e-walk") // as above
	d.Dies()
	return d.becomes(policies.Paused, policies.Running)
}

func (d *death) resumes() []string {
	d.StartMortal()
	if _, err := d.Client().ApplyPolicies(d.ctx, "-", []byte(d.policy("paused: true", "timing: {ttl: 10m}")), false); err != nil {
		d.Fatal(err)
	}
	d.Arm()
	_, _ = d.Client().ResumePolicy(d.ctx, "e2e-walk") // as above
	d.Dies()
	return d.becomes(policies.Running, policies.Paused)
}

func (d *death) deletes() []string {
	d.policed()
	_, _ = d.Client().DeletePolicy(d.ctx, "e2e-walk") // as above
	d.Dies()
	return d.becomes("", policies.Running)
}

func (d *death) expires() []string {
	d.StartMortal()
	if _, err := d.Client().ApplyPolicies(d.ctx, "-", []byte(d.policy("timing: {ttl: 1s}")), false); err != nil {
		d.Fatal(err)
	}
	d.Arm()
	d.Dies()
	return nil
}

func (d *death) fires() []string {
	d.StartMortal()
	if _, err := d.Client().ApplyPolicies(d.ctx, "-", []byte(d.policy(`timing: {schedule: "@every 2s", ttl: 10m}`)), false); err != nil {
		d.Fatal(err)
	}
	d.Arm()
	d.Dies()
	return []string{"policed"}
}

func (d *death) stops() []string {
	g := d.grafted()
	_, _ = d.Client().Stop(d.ctx, "a test") // as above
	d.Dies()
	mark, err := keeper.ReadStopped(d.State)
	switch {
	case err != nil:
		d.Fatal(err)
	case mark == nil && d.Point != "file.written":
		d.Error("the node is not stopped")
	case mark == nil:
		return []string{"wal"}
	}
	d.Start()
	d.Want()
	if d.Point != "stop.reverted" { // what the dead one did not come to
		if _, err := d.Client().Stop(d.ctx, "a test"); err != nil {
			d.Errorf("stop once more: %v", err)
		}
	}
	d.settles()
	if mark, err = keeper.ReadStopped(d.State); err != nil || len(mark.Grafts) != 1 || mark.Grafts[0] != g.ID {
		d.Errorf("%s was taken off for the stop, of which this is known: %+v, %v", g.ID, mark, err)
	}
	if _, err := d.Client().Release(d.ctx); err != nil {
		d.Errorf("release: %v", err)
	}
	d.Want("wal")
	d.settles()
	d.Kill()
	return []string{"wal"}
}

func (d *death) releases() []string {
	d.label("wal=" + wal)
	d.StartMortal()
	d.Want("wal")
	d.settles()
	if _, err := d.Client().Stop(d.ctx, "a test"); err != nil {
		d.Fatal(err)
	}
	d.Arm()
	_, _ = d.Client().Release(d.ctx) // as above
	d.Dies()
	if out, err := d.Faultgraft("release"); err != nil && !strings.Contains(out, "not stopped") {
		d.Errorf("release once more: %s, %v", out, err)
	}
	return []string{"wal"}
}
