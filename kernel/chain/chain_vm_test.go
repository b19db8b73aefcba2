package chain

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func mkdir(t *testing.T) func() error {
	dir := t.TempDir()
	return func() error { return unix.Mkdir(filepath.Join(dir, "d"), 0o700) }
}

// eachMethod runs a test for both ways.
func eachMethod(t *testing.T, test func(t *testing.T, m Method)) {
	for _, m := range []Method{State, Stack} {
		t.Run(m.String(), func(t *testing.T) { test(t, m) })
	}
}

func TestHoldsInsideOnly(t *testing.T) {
	needVM(t)
	eachMethod(t, func(t *testing.T, m Method) {
		for backend, function := range map[string]string{"fentry": "security_path_mkdir", "kprobe": "security_path_mkdir", "lsm": "path_mkdir", "fmod_ret": "security_path_mkdir"} {
			t.Run(backend, func(t *testing.T) {
				for _, c := range []struct {
					name   string
					frames []Frame
					holds  bool
				}{
					{"one frame", named("do_mkdirat"), true},
					{"two frames", named("__x64_sys_mkdirat", "do_mkdirat"), true},
					{"a gap", named("do_syscall_64", "do_mkdirat"), m == Stack}, // noinstr: cannot be traced
					{"another function", named("vfs_unlink"), false},
					{"one of two", named("vfs_unlink", "do_mkdirat"), false},
					{"out of order", named("do_mkdirat", "__x64_sys_mkdirat"), false},
				} {
					if c.name == "a gap" && m == State {
						continue
					}
					h := attachHook(t, compile(t, m, c.frames...), backend, function)
					got := h.during(t, mkdir(t))
					want := seen{Asked: 1}
					if c.holds {
						want.Held = 1
					}
					if got != want {
						t.Errorf("%s: asked and held %v, want %v", c.name, got, want)
					}
					_ = h.link.Close()
				}
			})
		}
	})
}

func TestRecursion(t *testing.T) {
	needVM(t)
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(dir, "merged")
	options := "lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Skipf("no overlayfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	file := filepath.Join(merged, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	chmod := func() error { return unix.Chmod(file, 0o640) }
	eachMethod(t, func(t *testing.T, m Method) {
		for _, c := range []struct {
			name   string
			frames []Frame
			hook   string
			want   seen
		}{
			// notify_change of overlayfs's inode calls notify_change of the one
			// below; ovl_copyattr comes after that has returned.
			{"after the inner call returned", named("notify_change"), "ovl_copyattr", seen{1, 1}},
			{"in the outer and in the inner call", named("notify_change"), "security_inode_setattr", seen{2, 2}},
			{"twice in the chain", named("notify_change", "notify_change"), "security_inode_setattr", seen{2, 1}},
			{"twice, with a function between", named("notify_change", "ovl_setattr", "notify_change"), "security_inode_setattr", seen{2, 1}},
			{"twice, but the inner call has returned", named("notify_change", "notify_change"), "ovl_copyattr", seen{1, 0}},
		} {
			t.Run(c.name, func(t *testing.T) {
				h := attachHook(t, compile(t, m, c.frames...), "fentry", c.hook)
				for range 3 {
					if got := h.during(t, chmod); got != c.want {
						t.Errorf("asked and held %v, want %v", got, c.want)
					}
				}
			})
		}
	})
}
