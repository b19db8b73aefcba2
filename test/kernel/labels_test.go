package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/test/vm"
)

const mountRule = "kernel hook=syscall:mount error=ENOMEM ttl=30m"

// loop runs mountLoop in a container of nerdctl; it has the container's output.
func (r *runtime) loop(name string, labels ...string) *container {
	r.t.Helper()
	c := &container{t: r.t, name: name, bundle: r.t.TempDir()}
	write(r.t, filepath.Join(c.bundle, "output"), "") // to be read before the container writes
	args := []string{"run", "-d", "--net", "none", "--privileged", "-v", c.bundle + ":/out", "--name", name}
	for _, l := range labels {
		args = append(args, "--label", l)
	}
	out := strings.Fields(r.nerdctl(append(args, image, "sh", "-c", "mkdir -p /mnt; exec >>/out/output 2>&1; "+mountLoop)...))
	c.id = out[len(out)-1] // after its warnings
	r.t.Cleanup(func() {
		if out, err := command(2*patience, "nerdctl", "rm", "-f", name); err != nil && !strings.Contains(strings.ToLower(out), "no such container") {
			r.t.Errorf("nerdctl rm -f %s: %v: %s", name, err, out)
		}
	})
	return c
}

// goesOn waits for more mounts of a container; none may have failed.
func goesOn(t testing.TB, c *container) {
	t.Helper()
	awaitMounts(t, c)
	if out := c.output(); strings.Contains(out, noMemory) {
		t.Errorf("a mount of %s failed:\n%s", c.name, head(out))
	}
}

func awaitMounts(t testing.TB, c *container) {
	t.Helper()
	had := count(c.output(), mounted)
	await(t, c.name+" mounts", func() bool { return count(c.output(), mounted) > had+2 })
}

// awaitFailures waits for more mounts that failed.
func awaitFailures(t testing.TB, c *container) {
	t.Helper()
	had := count(c.output(), noMemory)
	await(t, "mount prints "+noMemory+" in "+c.name, func() bool { return count(c.output(), noMemory) > had+1 })
}

// awaitNoProgramBut waits until no program, link or pin is there that was not
// before. Maps that all faults share stay with the agent.
func awaitNoProgramBut(t testing.TB, before map[string]bool) {
	t.Helper()
	var left string
	defer func() {
		if t.Failed() {
			t.Log("there is " + left)
		}
	}()
	await(t, "no program is left in the kernel", func() bool {
		for thing := range inKernel(t) {
			if !before[thing] && !strings.HasPrefix(thing, "map ") {
				left = thing
				return false
			}
		}
		return true
	})
}

// A label of a container puts a kernel fault in force in it, in each of its
// cgroups (K5), and what a command had pinned is there without the agent (K11).
func TestKernelLabels(t *testing.T) {
	vm.NeedFault(t)
	r := containerd(t)
	n := startNode(t)
	plain := r.loop("plain")
	excluded := r.loop("excluded", "oom.faultgraft.io="+mountRule, "enable.faultgraft.io=false")
	outside := hostLoop(t)
	outside.name = "the host"
	before := inKernel(t)

	t.Run("label", func(t *testing.T) {
		r := &runtime{t}
		n.t = t
		faulted := r.loop("faulted", "oom.faultgraft.io="+mountRule)
		awaitFailures(t, faulted)
		for _, c := range []*container{plain, excluded, outside} {
			goesOn(t, c)
		}
		all := n.ps()
		if len(all) != 1 || all[0].Target.Name != "faulted" || all[0].Origin != "label" || all[0].Kernel.Counters.Injected == 0 {
			t.Fatalf("ps: %+v", all)
		}

		first := all[0].Kernel.Cgroup
		r.nerdctl("restart", "-t", "0", "faulted")
		awaitFailures(t, faulted)
		await(t, "the fault of the first cgroup is gone", func() bool {
			all = n.ps()
			return len(all) == 1 && all[0].Kernel.Cgroup.ID != first.ID
		})
		if now := all[0]; now.Target.Name != "faulted" || now.Kernel.Cgroup.Path != first.Path || now.Kernel.Counters.Injected == 0 {
			t.Errorf("after the restart: %+v; the first cgroup was %+v", now, first)
		}

		r.nerdctl("rm", "-f", "faulted")
		await(t, "no fault is listed", func() bool { return len(n.ps()) == 0 })
		awaitNoProgramBut(t, before)
	})

	t.Run("exec", func(t *testing.T) {
		r := &runtime{t}
		n.t = t
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "exit"), exitProgram(t), 0o755); err != nil {
			t.Fatal(err)
		}
		r.nerdctl("run", "-d", "--net", "none", "-v", dir+":/out", "--name", "exec", image, "sleep", "1000")
		t.Cleanup(func() { r.nerdctl("rm", "-f", "exec") })
		for _, call := range []string{"read", "write", "openat", "clone"} {
			if out, err := n.faultgraft("inject", "exec", "--kernel", "hook=syscall:"+call+" error=EIO ttl=30m"); err != nil {
				t.Fatalf("inject: %v: %s", err, out)
			}
		}
		for range 3 {
			r.nerdctl("exec", "exec", "/out/exit")
		}
		for _, f := range n.ps() {
			if f.Kernel.Counters.Injected != 0 {
				t.Errorf("nerdctl exec: %+v", f)
			}
			if out, err := n.faultgraft("recover", f.ID); err != nil {
				t.Errorf("recover: %v: %s", err, out)
			}
		}
	})

	t.Run("outlive", func(t *testing.T) {
		n.t = t
		out, err := n.faultgraft("inject", "plain", "--kernel", mountRule, "--outlive")
		if err != nil {
			t.Fatalf("inject --outlive: %v: %s", err, out)
		}
		awaitFailures(t, plain)
		was := n.ps()
		if len(was) != 1 || !was[0].Kernel.Outlive || was[0].Target.Name != "plain" {
			t.Fatalf("ps: %+v", was)
		}

		n.kill()
		awaitFailures(t, plain)
		n.again()
		now := n.ps()
		if len(now) != 1 || now[0].ID != was[0].ID || now[0].Kernel.Cgroup.ID != was[0].Kernel.Cgroup.ID || now[0].Kernel.Counters.Injected <= was[0].Kernel.Counters.Injected {
			t.Errorf("the next agent lists %+v; the first one listed %+v", now, was)
		}
		if out, err := n.faultgraft("recover", was[0].ID); err != nil {
			t.Errorf("recover: %v: %s", err, out)
		}
		awaitMounts(t, plain)
		awaitNoProgramBut(t, before)
	})
}
