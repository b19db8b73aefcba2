package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// want says which rules are to be in force when all is settled.
func (d *death) want(rules ...string) { d.rules = slices.Sorted(slices.Values(rules)) }

// inForce are the rules of the container, and its grafts.
func (d *death) inForce() (rules []string, grafts []keeper.Graft, err error) {
	grafts, err = (&keeper.Client{StateDir: d.state()}).List(d.ctx)
	for _, g := range grafts {
		for _, r := range g.Rules {
			if !r.Expired {
				rules = append(rules, r.Name)
			}
		}
		if g.State != keeper.StateActive {
			err = errors.Join(err, fmt.Errorf("graft %s is %s: %s", g.ID, g.State, g.Reason))
		}
	}
	slices.Sort(rules)
	return rules, grafts, err
}

// settles waits until the wanted rules are in force, each once.
func (d *death) settles() keeper.Graft {
	d.Helper()
	var rules []string
	var grafts []keeper.Graft
	var err error
	for end := time.Now().Add(walkDeadline); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		rules, grafts, err = d.inForce()
		layers := strings.Count(d.mountinfo(d.T), "fuse.faultgraft")
		if err == nil && slices.Equal(rules, d.rules) && layers == len(grafts) && len(grafts) == min(len(rules), 1) {
			if len(grafts) == 1 {
				return grafts[0]
			}
			return keeper.Graft{}
		}
	}
	d.Fatalf("rules %q are to be in force, and it is %q: %+v, %v\n%s", d.rules, rules, grafts, err, d.mountinfo(d.T))
	return keeper.Graft{}
}

// goesOn waits for more calls of the container's program, none of which may have failed unasked.
func (d *death) goesOn() {
	d.Helper()
	first := d.recorded(d.T)
	for end := time.Now().Add(walkDeadline); ; time.Sleep(20 * time.Millisecond) {
		now := d.recorded(d.T)
		if len(now.Wrong) > 0 {
			d.wrong.Do(func() { d.Errorf("the container's program: %q", now.Wrong) })
			return
		}
		if now.Operations > first.Operations {
			return
		}
		if time.Now().After(end) {
			d.Fatalf("the container's program does nothing any more")
		}
	}
}

// recovered takes everything off while there is no agent: whoever asks for that wants peace, and the next agent leaves it at that.
func (d *death) recovered() {
	d.Helper()
	d.goesOn()
	if out, err := d.run("recover", "--all"); err != nil {
		d.Errorf("recover --all: %s, %v", out, err)
	}
	d.want()
	d.settles()
}

// nextAgent starts another agent, after what a service manager does (ExecStopPost of
// contrib/systemd), which completes or rolls back, and ends it in order.
func (d *death) nextAgent() {
	d.Helper()
	d.goesOn()
	if out, err := d.run("recover", "--orphans"); err != nil {
		d.Errorf("recover --orphans: %s, %v", out, err)
	}
	d.startWith()
	d.ready()
	d.settles()
	d.goesOn()
	d.counted()
	if err := d.agent.Process.Signal(syscall.SIGTERM); err != nil {
		d.Fatal(err)
	}
	<-d.ended
	if !d.agent.ProcessState.Success() {
		d.Errorf("the next agent: %s", d.agent.ProcessState)
	}
	d.agent = nil
}

// counted recovers what there is and compares the node's count of faults with what the program met.
func (d *death) counted() {
	d.Helper()
	if out, err := d.run("recover", "--all"); err != nil {
		d.Errorf("recover --all: %s, %v", out, err)
	}
	var met, counted uint64
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err := d.client().Metrics(d.ctx); err != nil { // it counts then
			d.Fatal(err)
		}
		met, counted = d.recorded(d.T).Faults["EIO"]-d.before.Faults["EIO"], d.counters()
		if met == counted || d.restarted {
			return
		}
	}
	d.Errorf("the program met %d faults, and %d are counted", met, counted)
}

// counters are the faults in the agent's file.
func (d *death) counters() (n uint64) {
	d.Helper()
	b, err := os.ReadFile(filepath.Join(d.state(), "counters.json"))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	var form struct{ Faults []struct{ N uint64 } }
	if err == nil {
		err = json.Unmarshal(b, &form)
	}
	if err != nil {
		d.Fatal(err)
	}
	for _, f := range form.Faults {
		n += f.N
	}
	return n
}

// nothingIsLeft recovers all without an agent, and looks at what is there then.
func (d *death) nothingIsLeft() {
	d.Helper()
	d.goesOn()
	if out, err := d.run("recover", "--all", "--purge"); err != nil {
		d.Errorf("recover --all --purge: %s, %v", out, err)
	}
	d.goesOn()
	if entries, err := os.ReadDir(d.state()); err == nil {
		d.Errorf("left in the state directory: %v", entries)
	}
	if now := d.mountinfo(d.T); now != d.mounts {
		d.Errorf("mounts are\n%s\nwere\n%s", now, d.mounts)
	}
	for _, left := range d.onOtherMounts() {
		d.Errorf("the program still has %s", left)
	}
	var left []string
	for end := time.Now().Add(walkDeadline); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left = d.processes(); len(left) == 0 {
			return
		}
	}
	d.Errorf("processes are left: %q", left)
}

// onOtherMounts lists the program's descriptors on mounts that its namespace does not have, as on a layer that was taken off.
func (d *death) onOtherMounts() (left []string) {
	d.Helper()
	have := map[string]bool{}
	for line := range strings.Lines(d.mountinfo(d.T)) {
		id, _, _ := strings.Cut(line, " ")
		have[id] = true
	}
	dir := fmt.Sprintf("/proc/%d/", d.pid)
	fds, err := os.ReadDir(dir + "fd")
	if err != nil {
		d.Fatal(err)
	}
	for _, fd := range fds {
		link, lerr := os.Readlink(dir + "fd/" + fd.Name())
		info, err := os.ReadFile(dir + "fdinfo/" + fd.Name())
		if err != nil || lerr != nil || !strings.HasPrefix(link, "/") || strings.HasPrefix(link, "/dev/") {
			continue // closed meanwhile, or not of a file
		}
		_, rest, _ := strings.Cut(string(info), "mnt_id:")
		if id, _, _ := strings.Cut(strings.TrimSpace(rest), "\n"); !have[id] {
			left = append(left, link+" on mount "+id)
		}
	}
	return left
}

// processes lists those that work with the death's state directory.
func (d *death) processes() (left []string) {
	d.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		d.Fatal(err)
	}
	for _, f := range files {
		env, err := os.Open(f)
		if err != nil {
			continue // it has ended
		}
		b, _ := io.ReadAll(env) // as above
		_ = env.Close()
		if strings.Contains(string(b), "FAULTGRAFT_STATE="+d.state()+"\x00") {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
			left = append(left, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return left
}
