package kernel

import (
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/deaths"
)

// The points of steps that several scenarios come to.
var (
	// arming is what puts one fault in force.
	arming = []string{
		"kernel agent arm.opened", "kernel load.maps", "kernel load.loaded", "kernel load.watched", "kernel load.attached",
		"kernel arm.entered", "kernel agent arm.armed", "kernel agent arm.held", "kernel agent arm.logged",
	}
	// pinning is what comes to that where it outlives; from linked on it does.
	pinning = []string{"kernel pin.folder", "kernel pin.maps", "kernel pin.chain", "kernel pin.entered", linked}
	// ending is what takes one out of force.
	ending    = []string{"kernel end.left", "kernel agent end.disarmed", "kernel agent end.unlisted", "kernel agent end.logged", "kernel agent end.counted", "kernel agent end.over"}
	unpinning = []string{"kernel end.unlinked", "kernel end.emptied", "kernel end.unpinned"}
)

const linked = "kernel pin.linked"

// remembered are the points at which the agent's file knows of a rule that is to be in force: what is recovered then is over, also for the next agent.
var remembered = []string{"kernel apply.remembered", "kernel apply.armed", "kernel apply.saved"}

var scenarios = []deaths.Scenario[*death]{
	{Name: "finds a container", Points: slices.Concat(arming, remembered, []string{"kernel apply.disarmed", "file.written", "file.renamed"}), Run: (*death).finds, Alone: true},
	{Name: "arms again", Points: []string{"kernel apply.remembered", "kernel agent arm.armed", "kernel apply.saved"}, Run: (*death).armsAgain},
	{Name: "logs a fault", Points: []string{"kernel event.written"}, Run: (*death).logs},
	{Name: "follows a label that goes", Points: slices.Concat(ending, []string{"kernel apply.disarmed", "kernel apply.saved", "file.written"}), Run: (*death).followsGone},
	{Name: "sees a container end", Points: []string{"kernel agent end.disarmed", "kernel agent end.over"}, Run: (*death).seesTheEnd},
	{Name: "is asked for a fault", Points: slices.Concat(arming, []string{"kernel request.armed"}), Run: (*death).isAsked, Alone: true},
	{Name: "is asked for one that outlives", Points: slices.Concat(arming, pinning, []string{"kernel request.armed"}), Run: (*death).isAskedToPin, Alone: true},
	{Name: "recovers a fault", Points: ending, Run: (*death).recovers},
	{Name: "recovers one that outlives", Points: slices.Concat(ending, unpinning), Run: (*death).recoversPinned, Alone: true},
	{Name: "recovers one that others pinned", Points: slices.Concat(unpinning, []string{"kernel found.ended", "kernel found.logged"}), Run: (*death).recoversFound},
	{Name: "ends a fault whose time is up", Points: ending, Run: (*death).expires},
	{Name: "takes one over", Points: []string{"kernel adopt.taken", "kernel adopt.held", "agent start.adopted"}, Run: (*death).takesOver, Alone: true},
	{Name: "takes one over whose time is up", Points: slices.Concat(unpinning, []string{"kernel adopt.ended"}), Run: (*death).takesOverTooLate, Alone: true},
	{Name: "is told to end", Points: []string{"agent end.deaf", "kernel end.left", "kernel close.closed", "kernel close.logged", "kernel close.counted", "agent end.disarmed"}, Run: (*death).ends},
	{Name: "applies a policy", Points: slices.Concat([]string{"agent policies.saved", "kernel agent arm.held"}, remembered), Run: (*death).applies},
	{Name: "deletes a policy", Points: []string{"agent policies.saved", "kernel agent end.disarmed", "kernel agent end.over", "kernel apply.saved"}, Run: (*death).deletes},
	{Name: "stops the node", Points: slices.Concat([]string{"stop.forbidden", "stop.listed", "kernel found.ended", "kernel found.logged", "stop.reverted"}, ending), Run: (*death).stops},
	{Name: "releases the node", Points: []string{"release.reopened", "release.lifted"}, Run: (*death).releases},
}

// asked is a rule as a command asks for it.
func asked(name string, ttl time.Duration) policy.Rule {
	r := fails("syscall:mount", unix.ENOMEM)
	r.Name, r.Trigger.TTL = name, ttl
	return r
}

// request is for the container's first process.
func (d *death) request(outlive bool, rule policy.Rule) plugin.KernelRequest {
	_, task := d.task(d.T)
	return plugin.KernelRequest{Target: keeper.Target{PID: int(task.Pid())}, Rules: []policy.Rule{rule}, Outlive: outlive}
}

// labelled is an agent that has carried a label out, and dies from here on.
func (d *death) labelled() {
	d.Helper()
	d.label("oom=" + mountRule)
	d.StartMortal()
	d.Want("oom")
	d.settles()
	d.meetsFaults()
	d.Arm()
}

// holding is an agent that a command asked for a fault, and that dies from here on.
func (d *death) holding(outlive bool, rule policy.Rule) string {
	d.Helper()
	d.StartMortal()
	made, err := d.Client().InjectKernel(d.ctx, d.request(outlive, rule))
	if err != nil {
		d.Fatal(err)
	}
	d.Want(rule.Name)
	d.pinned = d.settles()[0]
	d.Arm()
	return made[0].ID
}

func (d *death) finds() []string {
	d.label("oom=" + mountRule)
	d.StartArmed()
	return []string{"oom"}
}

func (d *death) armsAgain() []string {
	d.labelled()
	d.Kill()
	d.StartArmed()
	return []string{"oom"}
}

func (d *death) logs() []string {
	d.StartMortal()
	d.Arm()
	d.label("oom=" + mountRule)
	d.Dies()
	return []string{"oom"}
}

func (d *death) followsGone() []string {
	d.labelled()
	d.label()
	d.Dies()
	return nil
}

// seesTheEnd: the container's next task is another one, for which the label's rule begins anew.
func (d *death) seesTheEnd() []string {
	d.labelled()
	d.nerdctl("kill", d.name)
	d.Dies()
	await(d.T, "the container starts again", func() bool { _, err := command(patience, "nerdctl", "start", d.name); return err == nil })
	for thing := range inKernel(d.T) {
		if strings.Contains(thing, "CGroupDevice") { // runc's, of the new cgroup
			d.kernel[thing] = true
		}
	}
	return []string{"oom"}
}

func (d *death) isAsked() []string {
	d.StartMortal()
	d.Arm()
	_, _ = d.Client().InjectKernel(d.ctx, d.request(false, asked("held", time.Hour))) // the agent dies meanwhile
	d.Dies()
	return nil
}

func (d *death) isAskedToPin() []string {
	d.StartMortal()
	d.Arm()
	_, _ = d.Client().InjectKernel(d.ctx, d.request(true, asked("pinned", time.Hour))) // as above
	d.Dies()
	if slices.Contains(append(arming[slices.Index(arming, "kernel agent arm.armed"):], linked, "kernel request.armed"), d.Point) {
		return []string{"pinned"}
	}
	return nil
}

func (d *death) recovers() []string {
	id := d.holding(false, asked("held", time.Hour))
	_, _ = d.Client().EndKernel(d.ctx, id) // as above
	d.Dies()
	return nil
}

func (d *death) recoversPinned() []string {
	id := d.holding(true, asked("pinned", time.Hour))
	_, _ = d.Client().EndKernel(d.ctx, id) // as above
	d.Dies()
	return nil
}

// elsewhere pins a fault as a command does that has another state directory, and no agent there.
func (d *death) elsewhere() string {
	d.Helper()
	made, err := plugin.Direct{StateDir: d.TempDir()}.Inject(d.ctx, d.request(true, asked("elsewhere", time.Hour)))
	if err != nil {
		d.Fatal(err)
	}
	return made[0].ID
}

func (d *death) recoversFound() []string {
	d.StartMortal()
	id := d.elsewhere()
	d.Arm()
	_, _ = d.Client().EndKernel(d.ctx, id) // as above
	d.Dies()
	return nil
}

func (d *death) expires() []string {
	d.StartMortal()
	d.Arm()
	d.label("oom=kernel hook=syscall:mount error=ENOMEM ttl=5s")
	d.Dies()
	return nil
}

func (d *death) takesOver() []string {
	d.holding(true, asked("pinned", time.Hour))
	d.Kill()
	d.StartArmed()
	return []string{"pinned"}
}

func (d *death) takesOverTooLate() []string {
	d.StartMortal()
	made, err := d.Client().InjectKernel(d.ctx, d.request(true, asked("pinned", 6*time.Second)))
	if err != nil {
		d.Fatal(err)
	}
	d.Kill() // which may have ended it by then
	time.Sleep(time.Until(made[0].Rules[0].Expires) + 10*time.Millisecond)
	d.StartArmed()
	return nil
}

func (d *death) ends() []string {
	d.labelled()
	d.Spare()
	if _, err := d.Client().InjectKernel(d.ctx, d.request(true, asked("pinned", time.Hour))); err != nil {
		d.Fatal(err)
	}
	d.Want("oom", "pinned")
	d.settles()
	d.Arm()
	d.Terminate()
	d.Dies()
	return []string{"oom", "pinned"}
}

const kernelPolicy = `apiVersion: faultgraft.io/v1alpha1
kind: FaultPolicy
metadata: {name: walk}
spec:
  selector: {matchLabels: {app: walked}}
  faults: [{name: policed, kernel: {hook: "syscall:mount", error: ENOMEM}}]
  timing: {ttl: 30m}
`

func (d *death) applies() []string {
	d.StartMortal()
	d.Arm()
	_, _ = d.Client().ApplyPolicies(d.ctx, "-", []byte(kernelPolicy), false) // as above, or after it
	d.Dies()
	return []string{"policed"}
}

func (d *death) deletes() []string {
	d.StartMortal()
	if _, err := d.Client().ApplyPolicies(d.ctx, "-", []byte(kernelPolicy), false); err != nil {
		d.Fatal(err)
	}
	d.Want("policed")
	d.settles()
	d.Arm()
	_, _ = d.Client().DeletePolicy(d.ctx, "walk") // as above
	d.Dies()
	return nil
}

// stops: what a person or somebody else had pinned is over, the label's rule comes back with the release.
func (d *death) stops() []string {
	d.labelled()
	d.Spare()
	d.elsewhere()
	d.Arm()
	_, _ = d.Client().Stop(d.ctx, "a test") // as above
	d.Dies()
	d.Start()
	if d.Point != "stop.reverted" { // what the dead one did not come to
		if _, err := d.Client().Stop(d.ctx, "a test"); err != nil {
			d.Errorf("stop once more: %v", err)
		}
	}
	d.Want()
	d.settles()
	if _, err := d.Client().Release(d.ctx); err != nil {
		d.Errorf("release: %v", err)
	}
	d.Want("oom")
	d.settles()
	d.Kill()
	return []string{"oom"}
}

func (d *death) releases() []string {
	d.labelled()
	d.Spare()
	if _, err := d.Client().Stop(d.ctx, "a test"); err != nil {
		d.Fatal(err)
	}
	d.Arm()
	_, _ = d.Client().Release(d.ctx) // as above
	d.Dies()
	if mark, err := keeper.ReadStopped(d.State); err != nil || mark != nil {
		if out, err := d.Faultgraft("release"); err != nil {
			d.Errorf("release once more: %s, %v", out, err)
		}
	}
	return []string{"oom"}
}
