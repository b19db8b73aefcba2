package kernel

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/test/vm"
)

const (
	// mountLoop mounts and unmounts for ever and says how it went.
	mountLoop = `while :; do if mount -t tmpfs none /mnt; then umount /mnt; echo mounted; fi; sleep 0.3; done`
	mounted   = "mounted"
	// noMemory is what mount prints when it gets ENOMEM.
	noMemory = "Cannot allocate memory"
)

// hostLoop runs mountLoop outside of all containers until the test ends.
func hostLoop(t testing.TB) *container {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { // the loop may have been ended between mount and umount, and the mount it began be under way
		for range 10 {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
			time.Sleep(20 * time.Millisecond)
		}
	})
	loop := strings.ReplaceAll(mountLoop, "/mnt", dir)
	h := &container{t: t, bundle: t.TempDir()}
	h.background("/bin/sh", "-c", loop)
	return h
}

// K1, K4: a mount fails in the container, and nowhere else. On Debian's kernels
// by the LSM hook that stands for the system call.
func TestMountExample(t *testing.T) {
	vm.Need(t)
	a := startAgent(t)
	faulted, other, outside := start(t, "faulted", mountLoop), start(t, "other", mountLoop), hostLoop(t)
	for _, c := range []*container{faulted, other, outside} {
		await(t, "mounts before the fault", func() bool { return count(c.output(), mounted) > 1 })
	}

	id := a.inject(faulted.pid(), fails("syscall:mount", unix.ENOMEM))
	await(t, "mount prints "+noMemory, func() bool { return count(faulted.output(), noMemory) > 2 })
	for _, c := range []*container{other, outside} {
		n := count(c.output(), mounted)
		await(t, "mounts beside the fault", func() bool { return count(c.output(), mounted) > n+2 })
		if strings.Contains(c.output(), noMemory) {
			t.Errorf("a mount outside of the container failed:\n%s", c.output())
		}
	}
	f := a.fault(id)
	wantBackend, wantNote := "fmod_ret", ""
	if vm.Kernel() != vm.Fault {
		wantBackend, wantNote = "lsm", "sb_mount"
	}
	if f.Backend != wantBackend || !strings.Contains(f.Note, wantNote) {
		t.Errorf("backend %s with the note %q, want %s and %q", f.Backend, f.Note, wantBackend, wantNote)
	}
	if f.Cgroup.Path != faulted.cgroup {
		t.Errorf("it holds in the cgroup %s, want %s", f.Cgroup.Path, faulted.cgroup)
	}

	a.recover(id)
	n := count(faulted.output(), mounted)
	await(t, "mounts after the fault", func() bool { return count(faulted.output(), mounted) > n+2 })
	if got := a.faults(); len(got) != 0 {
		t.Errorf("after recover: %+v", got)
	}
}

// The counters are what the container saw.
func TestCountsAgree(t *testing.T) {
	vm.Need(t)
	a := startAgent(t)
	c := start(t, "counts", "sleep 1000")
	rule := fails("syscall:mount", unix.ENOMEM)
	rule.Trigger.Times = 3
	id := a.inject(c.pid(), rule)
	out, _ := c.exec("for i in 1 2 3 4 5; do mount -t tmpfs none /mnt && echo mounted && umount /mnt; done")
	if count(out, noMemory) != 3 || count(out, mounted) != 2 {
		t.Errorf("of five mounts with times=3:\n%s", out)
	}
	if got := a.fault(id).Counters; got.Matched != 5 || got.Injected != 3 {
		t.Errorf("the counters of five mounts of which three failed: %+v", got)
	}
}
