package kernel

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// K11: whoever arms and ends a fault that outlives is killed with -9 at each step. Pinned whole, the fault goes on;
// in part, it is in force nowhere, counts as over, and nothing is left of it once it is ended, as `recover --orphans` does.
// The rule has a call chain, whose programs are pinned too.
func TestDeathAtEachStep(t *testing.T) {
	vm.NeedFault(t)
	before := kernelObjects(t)
	pins := filepath.Join("/sys/fs/bpf", "faultgraft-test-walk")
	t.Cleanup(func() { _ = os.Remove(pins) })
	c := testCgroup(t, "/walk")
	want(t, c, "mount", 0)
	for _, point := range failpoint.All() {
		t.Run(point, func(t *testing.T) {
			reached := t.TempDir()
			cmd := command(t, outside, "outlive 3600 "+c.Path+" "+pins)
			cmd.Env = append(cmd.Env, failpoint.At+"=kill:"+point, failpoint.Reached+"="+reached)
			err := cmd.Run()
			_, merr := os.Stat(filepath.Join(reached, failpoint.Mark("kill", point)))
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != unix.SIGKILL || merr != nil {
				t.Fatalf("nobody is killed there: %v, %v", err, merr)
			}
			goesOn := point == "kernel pin.linked"
			if goesOn {
				want(t, c, "mount", unix.ENOMEM)
			} else {
				eventually(t, "the fault is gone", func() bool { status, _ := act(t, c, "mount"); return status == 0 })
			}
			found, err := Outliving(pins)
			if err != nil || len(found) > 1 || goesOn && len(found) == 0 {
				t.Errorf("%+v, %v", found, err)
			}
			for _, p := range found {
				if p.Expired() == goesOn || p.Foreign != nil {
					t.Errorf("expired: %v, %v", p.Expired(), p.Foreign)
				}
				if err := p.End(); err != nil {
					t.Error(err)
				}
			}
			want(t, c, "mount", 0)
			sameObjects(t, before)
			if left, err := os.ReadDir(pins); len(left) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// outlive arms a fault that outlives, and ends it: outlive TTL CGROUP PINS.
func outlive(_ int, words []string) int {
	c, err := CgroupAt(words[2])
	if err != nil {
		return 240
	}
	in, err := New(Options{PinDir: words[3]})
	if err != nil {
		return 241
	}
	r := rule(HookSlab, "", unix.ENOMEM, inside(policy.Frame{Function: "path_mount"}))
	a, err := in.Arm(context.Background(), Fault{ID: "walked", Rule: r, Cgroup: c, Outlive: true})
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		return 242
	}
	if err := a.Disarm(); err != nil {
		_, _ = os.Stderr.WriteString(strings.TrimSpace(err.Error()) + "\n")
		return 243
	}
	return 0
}
