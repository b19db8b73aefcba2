package process

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// within runs f on a thread of the target's mount namespace, with a working directory of its own.
func (h *holder) within(f func() error) {
	h.t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		done <- func() error {
			ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", h.pid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer func() { _ = unix.Close(ns) }()
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
				return err
			}
			return f()
		}()
	}()
	if err := <-done; err != nil {
		h.t.Fatal(err)
	}
}

// mountDeep mounts so many file systems in the target, at paths of 75 KB each as the kernel writes a blank. What they are mounted in is to be unmounted with MNT_DETACH.
func (h *holder) mountDeep(base string, mounts int) {
	h.t.Helper()
	h.within(func() error {
		if err := unix.Mount("deep", base, "tmpfs", 0, ""); err != nil {
			return err
		}
		if err := unix.Chdir(base); err != nil {
			return err
		}
		name := strings.Repeat(" ", 250)
		for range 75 {
			if err := unix.Mkdir(name, 0o755); err != nil {
				return err
			}
			if err := unix.Chdir(name); err != nil {
				return err
			}
		}
		for i := range mounts {
			m := fmt.Sprint("m", i)
			if err := unix.Mkdir(m, 0o755); err != nil {
				return err
			}
			if err := unix.Mount("x", m, "tmpfs", 0, ""); err != nil {
				return fmt.Errorf("mount %s: %w", m, err)
			}
		}
		return nil
	})
}

func (h *holder) unmountDeep(base string) {
	h.t.Helper()
	h.within(func() error { return unix.Unmount(base, unix.MNT_DETACH) })
}

// A target that mounts at paths of any length keeps no layer by that, and gets out of none.
func TestTargetMountsAtLongPaths(t *testing.T) {
	r := newRig(t)
	o := r.startFaulted("10m")
	base := t.TempDir()
	o.mountDeep(base, 1)
	if longest := longestLine(o.mountinfo()); longest < 1<<16 {
		t.Fatalf("the longest line has %d bytes: this test tests nothing", longest)
	}
	r.recover(o.graft)
	o.is("ok", "fsync f")
	g := r.inject(o.holder, r.data, "io error=EIO op=fsync ttl=10m")
	o.is("EIO", "fsync f")
	r.recover(g)
	o.unmountDeep(base)
	o.asBefore()
}

// One with more mounts than anybody reads is told so, before anything of it is stopped.
func TestTargetHasTooManyMounts(t *testing.T) {
	r := newRig(t)
	o := r.startFaulted("10m")
	base := t.TempDir()
	o.mountDeep(base, 1000)
	const want = "the list of its mounts is longer than 64 MiB: unmount some"
	for name, args := range map[string][]string{
		"nothing was stopped": {"recover", o.graft.ID},
		"inject":              {"inject", "--pid", fmt.Sprint(o.pid()), "--path", t.TempDir(), "io error=EIO op=fsync ttl=1m"},
	} {
		out, err := r.run(args...)
		if err == nil || !strings.Contains(err.Error(), want) || name != "inject" && !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %q, %v", args, out, err)
		}
		untraced(t, o.pid())
	}
	out, err := r.command("recover", "--orphans").CombinedOutput() // no reason to fail: others have what they asked for
	if err != nil || !strings.Contains(string(out), want) || !strings.Contains(string(out), fmt.Sprintf("dead layers of process %d (holder) were not looked for", o.pid())) {
		t.Errorf("recover --orphans: %v: %s", err, out)
	}
	o.is("ok", "fsync f") // `recover` has ended the fault all the same
	o.unmountDeep(base)
	r.awaitUnmounted(o.holder, time.Minute) // the keeper tries it again
	o.asBefore()
}

func longestLine(text string) (longest int) {
	for l := range strings.Lines(text) {
		longest = max(longest, len(l))
	}
	return longest
}
