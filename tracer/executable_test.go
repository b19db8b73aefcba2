package tracer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// exeMount is the mount that a process was started from.
func exeMount(t testing.TB, pid int) uint64 {
	t.Helper()
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/exe", pid), 0, unix.STATX_MNT_ID, &x); err != nil {
		t.Fatal(err)
	}
	return x.Mnt_id
}

// G13: where it is asked for, the running program moves too, with the maps of its code, and back; a failure at any step leaves it where it is.
func TestExecutables(t *testing.T) {
	for _, program := range []string{"target", "target-static"} {
		t.Run(program, func(t *testing.T) {
			at := newPlace(t)
			dir, err := buildTarget()
			if err != nil {
				t.Skip(err)
			}
			copyFile(t, dir+"/"+program, at.a+"/program")
			p := start(t, at.a+"/program", "hold", at.a)
			p.check()
			s := newSwapper(t, at, p.pid())
			boom := errors.New("boom")
			for n := 1; ; n++ {
				failed, i := false, 0
				o := s.forward()
				o.Executables, o.RequireAll = true, false
				o.Step = func(string) error {
					if i++; i == n {
						failed = true
						return boom
					}
					return nil
				}
				_, err := tracer.Swap(context.Background(), o)
				if !failed {
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				s.drop()
				if !errors.Is(err, boom) {
					t.Fatalf("step %d: %v", n, err)
				}
				if exeMount(t, p.pid()) != at.mntA {
					t.Fatalf("step %d: %v: the executable has moved", n, err)
				}
				if left := onMount(t, at.mntB, p.pid()); left != 0 {
					t.Errorf("step %d: %d objects were left on the other mount", n, left)
				}
				p.check() // the maps are not compared: the kernel joins neighbours
			}
			if n := onMount(t, at.mntA, p.pid()); n != 0 {
				t.Errorf("%d objects left", n)
			}
			if os.Getuid() == 0 && exeMount(t, p.pid()) != at.mntB {
				t.Error("the executable has not moved")
			}
			p.check()
			o := s.backward()
			o.Executables = true
			swap(t, o)
			s.drop()
			if exeMount(t, p.pid()) != at.mntA {
				t.Error("the executable is not back")
			}
			p.check()
			p.quit()
		})
	}
}
