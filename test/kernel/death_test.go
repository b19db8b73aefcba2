package kernel

import (
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
