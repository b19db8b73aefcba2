package kernel

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/test/vm"
)

// K11: kill -9 of the agent ends its faults, and nothing of them is left in the kernel. How long that takes is not looked at.
func TestAgentIsKilled(t *testing.T) {
	vm.Need(t)
	a := startAgent(t)
	c := start(t, "orphan", mountLoop)
	before := inKernel(t)
	a.inject(c.pid(), fails("syscall:mount", unix.ENOMEM))
	await(t, "mount prints "+noMemory, func() bool { return count(c.output(), noMemory) > 1 })
	if now := inKernel(t); len(now) <= len(before) {
		t.Fatalf("with a fault there is no more in the kernel than before: %v", now)
	}

	a.kill()
	awaitNothingBut(t, before)
	awaitMounts(t, c) // what failed before is printed by then
	failed := count(c.output(), noMemory)
	awaitMounts(t, c)
	if now := count(c.output(), noMemory); now != failed {
		t.Errorf("%d mounts failed after the agent's death", now-failed)
	}
	a.again()
}

// K12: an agent that does nothing any more keeps no fault alive: the program itself knows when the ttl is over, with and without
// --outlive. When the agent goes on, it clears away what is over.
func TestTTLEndsWithoutTheAgent(t *testing.T) {
	vm.Need(t)
	n := startNode(t)
	how := map[*container][]string{start(t, "stopped", mountLoop): nil, start(t, "stopped-outlive", mountLoop): {"--outlive"}}
	before := inKernel(t)
	for c, outlive := range how {
		args := append([]string{"inject", "--pid", itoa(c.pid()), "--kernel", "hook=syscall:mount error=ENOMEM ttl=25s"}, outlive...)
		if out, err := n.faultgraft(args...); err != nil {
			t.Fatalf("inject: %v: %s", err, out)
		}
	}
	for c := range how {
		awaitFailures(t, c)
	}
	if err := n.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.cmd.Process.Signal(unix.SIGCONT) }) // should the test fail in between
	for c := range how {
		awaitMounts(t, c)
		failed := count(c.output(), noMemory)
		awaitMounts(t, c)
		if now := count(c.output(), noMemory); now != failed {
			t.Errorf("%s: %d mounts failed after the ttl", c.name, now-failed)
		}
	}
	if stat, err := os.ReadFile("/proc/" + itoa(n.cmd.Process.Pid) + "/stat"); err != nil || !strings.Contains(string(stat), ") T ") {
		t.Errorf("the agent did not stand still all the time: %s %v", stat, err)
	}
	if err := n.cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	await(t, "ps lists nothing", func() bool { return len(n.ps()) == 0 })
	awaitNoProgramBut(t, before)
}
