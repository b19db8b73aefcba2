package kernel

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// held starts a process that arms a fault on mount in the cgroup and keeps it;
// kill kills it with -9.
func held(t *testing.T, c Cgroup, act string) (kill func()) {
	t.Helper()
	cmd := command(t, outside, act)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "armed\n" {
		t.Fatalf("it says %q, %v", line, err)
	}
	return kill
}

// eventually waits for something that the kernel does when a process is gone.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// K11: the fault ends with the process that armed it, and leaves nothing.
func TestKilledHolder(t *testing.T) {
	vm.Need(t)
	before := kernelObjects(t)
	c := testCgroup(t, "/killed")
	kill := held(t, c, "hold 3600 "+c.Path)
	want(t, c, "mount", unix.ENOMEM)
	kill()
	eventually(t, "the fault is gone", func() bool { status, _ := act(t, c, "mount"); return status == 0 })
	sameObjects(t, before)
}

// K11: a fault that outlives its process goes on, is found, adopted with its
// counters and unread events, and ended.
func TestOutlive(t *testing.T) {
	vm.Need(t)
	before := kernelObjects(t)
	pins := filepath.Join("/sys/fs/bpf", "faultgraft-test")
	t.Cleanup(func() { _ = os.Remove(pins) })
	c := testCgroup(t, "/outlive")
	kill := held(t, c, "hold 3600 "+c.Path+" "+pins)
	kill()
	want(t, c, "mount", unix.ENOMEM)
	want(t, outside, "mount", 0)

	found, err := Outliving(pins)
	if err != nil || len(found) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	p := found[0]
	if p.ID != "held" || p.Rule.Kernel == nil || p.Rule.Kernel.Hook.String() != "syscall:mount" || p.Cgroup.ID != c.ID || p.Counters.Injected != 1 ||
		p.Expired() || len(p.Functions) != 1 || p.Backend == "" || p.Ends.Sub(p.Started).Round(time.Second) != time.Hour {
		t.Errorf("%+v", p)
	}

	r := &recorder{}
	in, err := New(Options{PinDir: pins, OnEvent: r.add})
	if err != nil {
		t.Fatal(err)
	}
	a, err := in.Adopt(p)
	if err != nil {
		t.Fatal(err)
	}
	want(t, c, "mount", unix.ENOMEM)
	if got := counters(t, a); got.Injected != 2 {
		t.Errorf("counted %+v", got)
	}
	eventually(t, "both events", func() bool { return len(r.all()) == 2 })
	if e := r.all()[0]; e.Fault != "held" || e.Seq != 1 || e.Hook != "syscall:mount" || e.Function != p.Functions[0] {
		t.Errorf("%+v", e)
	}
	if _, err := in.Arm(t.Context(), Fault{ID: "held", Rule: rule(HookSyscall, "mount", unix.EIO), Cgroup: c, Outlive: true}); err == nil {
		t.Error("a second fault of the same id was armed")
	}
	if err := in.Close(); err != nil { // it goes on
		t.Fatal(err)
	}
	if err := a.Disarm(); !errors.Is(err, errClosed) {
		t.Errorf("disarmed by a closed injector: %v", err)
	}
	want(t, c, "mount", unix.ENOMEM)

	if in, err = New(Options{PinDir: pins}); err != nil {
		t.Fatal(err)
	}
	if a, err = in.Adopt(p); err != nil {
		t.Fatal(err)
	}
	if err := a.Disarm(); err != nil {
		t.Fatal(err)
	}
	want(t, c, "mount", 0)
	if got := counters(t, a); got.Injected != 3 {
		t.Errorf("counted %+v", got)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if found, err := Outliving(pins); err != nil || len(found) != 0 {
		t.Errorf("left: %+v, %v", found, err)
	}
	sameObjects(t, before)
}

// K11, K12: what outlives ends at its ttl without anybody, and can be cleared away then.
func TestOutliveEnds(t *testing.T) {
	vm.Need(t)
	before := kernelObjects(t)
	pins := filepath.Join("/sys/fs/bpf", "faultgraft-test-ttl")
	t.Cleanup(func() { _ = os.Remove(pins) })
	c := testCgroup(t, "/outlive-ttl")
	held(t, c, "hold 4 "+c.Path+" "+pins)()
	found, err := Outliving(pins)
	if err != nil || len(found) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	eventually(t, "the ttl is over", found[0].Expired)
	// the wall clock of Expired is not the program's
	eventually(t, "mounts succeed", func() bool { status, _ := act(t, c, "mount"); return status == 0 })
	if err := found[0].End(); err != nil {
		t.Fatal(err)
	}
	sameObjects(t, before)
}

// A directory outside of bpffs is refused with the way out, and nothing is left.
func TestOutliveNeedsBPFFS(t *testing.T) {
	vm.Need(t)
	before := kernelObjects(t)
	in, err := New(Options{PinDir: filepath.Join(t.TempDir(), "faultgraft")})
	if err != nil {
		t.Fatal(err)
	}
	c := testCgroup(t, "/no-bpffs")
	_, err = in.Arm(t.Context(), Fault{ID: "x", Rule: rule(HookSyscall, "mount", unix.EIO), Cgroup: c, Outlive: true})
	if err == nil || !strings.Contains(err.Error(), "mount -t bpf bpf") {
		t.Errorf("%v", err)
	}
	sameObjects(t, before)
}

func TestPinName(t *testing.T) {
	for id, want := range map[string]string{"k-0123": "k-0123", "a.b": "0x612e62", "": "0x", "../x": "0x2e2e2f78"} {
		got := pinName(id)
		if got != want {
			t.Errorf("%q: %q", id, got)
		}
		if back, ok := cutHex(got); ok && back != id {
			t.Errorf("%q: back %q", id, back)
		}
	}
	if _, err := Outliving(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Error(err)
	}
}
