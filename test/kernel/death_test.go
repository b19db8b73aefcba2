package kernel

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/test/vm"
)

// K11: kill -9 of the agent ends its faults within a second, and nothing of them is left in the kernel.
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
	// programs are freed in the background, after the links
	time.Sleep(time.Second)
	failed := count(c.output(), noMemory)
	n := count(c.output(), mounted)
	await(t, "mounts after the agent's death", func() bool { return count(c.output(), mounted) > n+2 })
	if now := count(c.output(), noMemory); now != failed {
		t.Errorf("%d mounts failed later than a second after the agent's death", now-failed)
	}
	awaitNothingBut(t, before)
	a.again()
}
