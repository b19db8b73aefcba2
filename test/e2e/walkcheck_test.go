package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

func (d *death) Want(rules ...string) { d.rules = slices.Sorted(slices.Values(rules)) }

// inForce are the rules of the container, and its grafts.
func (d *death) inForce() (rules []string, grafts []keeper.Graft, err error) {
	grafts, err = (&keeper.Client{StateDir: d.State}).List(d.ctx)
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

// Recovered has the next agent leave it at that: whoever asks for that wants peace.
func (d *death) Recovered() {
	d.Helper()
	d.goesOn()
	if out, err := d.Faultgraft("recover", "--all"); err != nil {
		d.Errorf("recover --all: %s, %v", out, err)
	}
	d.Want()
	d.settles()
}

// NextAgent completes or rolls back, and is ended in order.
func (d *death) NextAgent() {
	d.Helper()
	d.goesOn()
	d.StartNext()
	d.settles()
	d.goesOn()
	d.counted()
	d.End()
}

// counted recovers what there is and compares the node's count of faults with what the program met.
func (d *death) counted() {
	d.Helper()
	if out, err := d.Faultgraft("recover", "--all"); err != nil {
		d.Errorf("recover --all: %s, %v", out, err)
	}
	var met, counted uint64
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err := d.Client().Metrics(d.ctx); err != nil { // it counts then
			d.Fatal(err)
		}
		met, counted = d.recorded(d.T).Faults["EIO"]-d.before.Faults["EIO"], d.Counted()
		if met == counted || d.restarted {
			return
		}
	}
	d.Errorf("the program met %d faults, and %d are counted", met, counted)
}

func (d *death) NothingIsLeft() {
	d.Helper()
	d.goesOn()
	if out, err := d.Faultgraft("recover", "--all", "--purge"); err != nil {
		d.Errorf("recover --all --purge: %s, %v", out, err)
	}
	d.goesOn()
	if now := d.mountinfo(d.T); now != d.mounts {
		d.Errorf("mounts are\n%s\nwere\n%s", now, d.mounts)
	}
	for _, left := range d.onOtherMounts() {
		d.Errorf("the program still has %s", left)
	}
	d.Agent.NothingIsLeft()
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
