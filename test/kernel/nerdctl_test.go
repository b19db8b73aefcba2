package kernel

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/test/vm"
)

// The mount example with containers of nerdctl. Stopped and started again a
// container has another cgroup, in which the fault of the first does not hold (K5).
func TestMountExampleWithNerdctl(t *testing.T) {
	vm.NeedFault(t) // containerd takes its time on an emulated machine: one kernel is enough
	noLeaks(t)
	r := containerd(t)
	a := startAgent(t)
	out := map[string]*container{} // what they print
	for _, name := range []string{"plain", "faulted"} {
		out[name] = &container{t: t, bundle: t.TempDir()}
		r.nerdctl("run", "-d", "--net", "none", "--privileged", "-v", out[name].bundle+":/out", "--name", name,
			image, "sh", "-c", "mkdir -p /mnt; exec >/out/output 2>&1; "+mountLoop)
		t.Cleanup(func() { r.nerdctl("rm", "-f", name) })
	}
	id := a.inject(r.pid("faulted"), fails("syscall:mount", unix.ENOMEM))
	await(t, "the container prints "+noMemory, func() bool { return strings.Contains(out["faulted"].output(), noMemory) })
	mounts := count(out["plain"].output(), mounted)
	await(t, "the other one mounts", func() bool { return count(out["plain"].output(), mounted) > mounts+2 })
	if logs := out["plain"].output(); strings.Contains(logs, noMemory) {
		t.Errorf("a mount in the other container failed:\n%s", head(logs))
	}

	r.nerdctl("restart", "-t", "0", "faulted")
	await(t, "the container that was started again mounts", func() bool { return count(out["faulted"].output(), mounted) > 2 })
	was := a.fault(id).Cgroup
	a.recover(id)
	id = a.inject(r.pid("faulted"), fails("syscall:mount", unix.ENOMEM))
	if now := a.fault(id).Cgroup; now.ID == was.ID {
		t.Errorf("the cgroup %+v is that of the first start", now)
	}
	await(t, "mounts fail again", func() bool { return a.fault(id).Counters.Injected > 2 })
}
