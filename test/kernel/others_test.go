package kernel

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/test/vm"
)

// A pinned fault that a running agent holds is that agent's: `recover --all` of another state directory leaves it alone and
// says so, the agent there does not take it over, and only who names it ends it. The agent that held it notices. When the
// agent is dead, the fault is anybody's.
func TestPinnedFaultOfAnotherAgent(t *testing.T) {
	vm.NeedFault(t)
	n := startNode(t)
	c := start(t, "others", mountLoop)
	before := inKernel(t)
	dir := t.TempDir()
	other := &node{t: t, state: filepath.Join(dir, "state"), log: filepath.Join(dir, "log")}
	inject := func() string {
		t.Helper()
		if out, err := n.faultgraft("inject", "--pid", itoa(c.pid()), "--kernel", mountRule, "--outlive"); err != nil {
			t.Fatalf("inject: %v: %s", err, out)
		}
		awaitFailures(t, c)
		return n.ps()[0].ID
	}
	recovers := func(what string) string {
		t.Helper()
		out, err := other.faultgraft("recover", what)
		if err != nil {
			t.Errorf("recover %s: %v: %s", what, err, out)
		}
		return out
	}
	ended := func() {
		t.Helper()
		awaitMounts(t, c) // what failed before is printed by then
		failed := count(c.output(), noMemory)
		awaitMounts(t, c)
		if now := count(c.output(), noMemory); now != failed {
			t.Errorf("%d mounts failed after the fault's end", now-failed)
		}
	}

	id := inject()
	if out := recovers("--all"); !strings.Contains(out, "left alone: kernel fault "+id) || !strings.Contains(out, n.state) {
		t.Errorf("recover --all of another state directory: %q", out)
	}
	awaitFailures(t, c)
	other.again()
	t.Cleanup(func() { // should the test fail in between
		_ = other.cmd.Process.Kill()
		_ = other.cmd.Wait()
	})
	if all := other.ps(); len(all) != 0 {
		t.Errorf("the agent of another state directory has %+v", all)
	}
	other.kill()
	if all := n.ps(); len(all) != 1 || all[0].ID != id {
		t.Errorf("the agent that armed %s lists %+v", id, all)
	}
	recovers(id)
	ended()
	await(t, "the agent that held it notices", func() bool { return len(n.ps()) == 0 })
	awaitNoProgramBut(t, before)

	id = inject()
	n.kill()
	awaitFailures(t, c)
	if out := recovers("--all"); !strings.Contains(out, "recovered "+id) {
		t.Errorf("recover --all of another state directory, without the agent: %q", out)
	}
	ended()
	n.again()
}
