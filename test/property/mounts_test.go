package property

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// twoMounts is a folder that is mounted twice. Files are swapped from one mount to
// the other: the same files, so that the target can check that nothing changed, on
// another mount, so that the test sees what was swapped. There is no layer, and so
// no limit but tracer's own speed.
type twoMounts struct {
	t      testing.TB
	dirs   [2]string
	mounts [2]uint64
	roots  [2]int // O_PATH, of each mount
	pid    int    // of the target, once it is there
	// what the swaps of the test came to
	swaps, objects int
	pauses         []time.Duration
}

func newTwoMounts(t testing.TB) *twoMounts {
	t.Helper()
	base, err := os.MkdirTemp("", "faultgraft-mounts")
	if err != nil {
		t.Fatal(err)
	}
	m := &twoMounts{t: t, roots: [2]int{-1, -1}}
	t.Cleanup(func() {
		for i, d := range m.dirs {
			if m.roots[i] >= 0 {
				_ = unix.Close(m.roots[i])
			}
			if err := unix.Unmount(d, unix.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
				t.Errorf("unmount %s: %v", d, err)
			}
		}
		_ = os.RemoveAll(base)
	})
	files := filepath.Join(base, "files")
	if err := errors.Join(os.Chmod(base, 0o755), os.Mkdir(files, 0o777), os.Chmod(files, 0o777)); err != nil {
		t.Fatal(err)
	}
	for i := range m.dirs {
		m.dirs[i] = filepath.Join(base, fmt.Sprint("mount", i))
		if err := os.Mkdir(m.dirs[i], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(files, m.dirs[i], "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		if m.roots[i], err = unix.Open(m.dirs[i], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		var x unix.Statx_t
		if err := unix.Statx(m.roots[i], "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &x); err != nil {
			t.Fatal(err)
		}
		m.mounts[i] = x.Mnt_id
	}
	return m
}

func (m *twoMounts) processes() []int { return group(m.pid) }

// options are those of a swap to mount `to` from the other one.
func (m *twoMounts) options(to int) tracer.Options {
	from := 1 - to
	return tracer.Options{
		Processes: func() ([]int, error) { return m.processes(), nil },
		Match: func(o *tracer.Object) bool {
			f := o.Mode & unix.S_IFMT
			return o.MountID == m.mounts[from] && (f == unix.S_IFREG || f == unix.S_IFDIR || f == unix.S_IFLNK)
		},
		Replace: func(d *tracer.Description) (int, error) {
			// by its handle: it may have no name, or another one by now
			h, _, err := unix.NameToHandleAt(d.File, "", unix.AT_EMPTY_PATH)
			if err != nil {
				return -1, fmt.Errorf("handle of %s: %w", d.Path, err)
			}
			flags := d.Flags&^(unix.O_CREAT|unix.O_EXCL|unix.O_TRUNC|unix.O_TMPFILE&^unix.O_DIRECTORY) | unix.O_CLOEXEC
			if d.Mode&unix.S_IFMT != unix.S_IFDIR {
				flags &^= unix.O_DIRECTORY
			}
			fd, err := unix.OpenByHandleAt(m.roots[to], h, flags)
			if err != nil {
				return -1, fmt.Errorf("open %s by its handle: %w", d.Path, err)
			}
			return fd, nil
		},
		// exchange as on the way back from a layer, and refill as on the way there
		NeverEmpty: to == 0,
		RequireAll: true,
		Deadline:   20 * time.Second, // the machine may be busy with other things
	}
}

// swap swaps everything to a mount, in as many passes as it takes (a graft does so
// too), and checks that nothing is left on the other.
func (m *twoMounts) swap(to int, grace time.Duration) {
	m.t.Helper()
	for pass := range 5 {
		r, err := tracer.Swap(context.Background(), m.options(to))
		if err != nil {
			m.t.Fatalf("swap %d: %v", m.swaps, err)
		}
		if len(r.Skipped) > 0 {
			m.t.Fatalf("swap %d: not swapped: %+v", m.swaps, r.Skipped)
		}
		m.objects += len(r.Swapped)
		if pass == 0 {
			m.swaps++
			m.pauses = append(m.pauses, r.Pause)
		} else if len(r.Swapped) == 0 {
			break
		}
	}
	m.none(1-to, grace)
}

// none checks that the target has nothing on a mount.
func (m *twoMounts) none(mount int, grace time.Duration) {
	m.t.Helper()
	gone(m.t, fmt.Sprintf("swap %d", m.swaps), grace, m.processes, func(o *object) bool { return o.stat.Mnt_id == m.mounts[mount] && swappable(o) })
}
