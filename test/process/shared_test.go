package process

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// G14: a volume whose mount is shared with the host. The layer appears in the target only, and the mount is in its group again
// afterwards, also when the graft lies over the volume's own mount point.
func TestSharedVolume(t *testing.T) {
	for _, below := range []string{"", "sub"} {
		t.Run("at "+below, func(t *testing.T) {
			r, h := shared(t)
			before := h.snapshot()
			g := r.inject(h, filepath.Join(r.data, below), "io error=EIO op=fsync ttl=1m")
			h.is("EIO", "fsync f")
			for _, l := range r.leftovers() {
				if strings.Contains(l, "fuse.faultgraft") {
					t.Errorf("the layer is on the host too: %s", l)
				}
			}
			r.recover(g)
			h.is("ok", "fsync f")
			same(t, before, h.snapshot())
		})
	}
}

// A volume that the target takes off, with the layer on it, leaves nothing that
// could be put back, and is no reason for an ungraft to fail.
func TestSharedVolumeIsTakenOff(t *testing.T) {
	for _, below := range []string{"", "sub"} {
		t.Run("at "+below, func(t *testing.T) {
			r, h := shared(t)
			g := r.inject(h, filepath.Join(r.data, below), "io error=EIO op=fsync ttl=1m")
			h.is("EIO", "fsync f")
			for range 2 { // the layer, and what it is on
				_ = exec.Command("nsenter", "--target", strconv.Itoa(h.pid()), "--mount", "umount", "-l", r.data).Run() // none left to take off
			}
			r.recover(g)
			h.is("ok", "fsync f")
		})
	}
}

// shared makes a volume that is mounted with shared propagation, and a target in a mount namespace of its own with a file open on it.
func shared(t *testing.T) (*rig, *holder) {
	r := newRig(t)
	return r, r.sharedTarget()
}

func (r *rig) sharedTarget() *holder {
	t := r.t
	volume(t, r.data)
	propagate(t, r.data, unix.MS_SHARED)
	if err := unix.Mkdir(r.data+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	p := r.write("sub/f", "0123456789")
	h := r.startWith("unshare", "--mount", "--propagation", "unchanged", binaries.holder)
	h.ok("open f %s rdwr", p)
	return h
}

// volume mounts a file system of its own there, in the namespace that plays the host.
func volume(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Mount("volume", dir, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func propagate(t testing.TB, dir string, how uintptr) {
	t.Helper()
	if err := unix.Mount("", dir, "", how, ""); err != nil {
		t.Fatal(err)
	}
}
