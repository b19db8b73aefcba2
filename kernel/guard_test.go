package kernel

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/faultgraft/faultgraft/kernel/chain"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// matchesWith arms a rule that never fires, with its guard changed, and says how
// often it matched while work went on; only below the function, if there is one.
func matchesWith(t *testing.T, in *Injector, r policy.Rule, below string, c Cgroup, change func(*guard), work func()) uint64 {
	t.Helper()
	spec, err := kernelTypes()
	if err != nil {
		t.Fatal(err)
	}
	all, err := ways(r.Kernel, readSettings(), spec)
	if err != nil {
		t.Fatal(err)
	}
	w := all[0]
	change(&w.guard)
	f, err := newFilters(spec, r, w)
	if err != nil {
		t.Fatal(err)
	}
	if below != "" { // the stack is what can be believed in an interrupt
		f.chain, err = chain.Compile(chain.Options{Spec: spec, Frames: []chain.Frame{{Function: below}}, Method: chain.Stack, Name: "test"})
		if err != nil {
			t.Fatal(err)
		}
	}
	i := &instance{way: w, filters: f, members: map[uint64]*Armed{}}
	if err := i.load(spec, r.Kernel); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := i.close(); err != nil {
			t.Error(err)
		}
	}()
	r.Trigger.P = 0
	a := &Armed{fault: Fault{ID: "guard", Rule: r, Cgroup: c}, injector: in}
	if err := a.enter(i); err != nil {
		t.Fatal(err)
	}
	work()
	return counters(t, a).Matched
}

func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	request := struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{name: [unix.IFNAMSIZ]byte{'l', 'o'}, flags: unix.IFF_UP | unix.IFF_RUNNING}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request))); e != 0 {
		t.Fatal(e)
	}
}

// K9: what a softirq does while a thread of the target is current is not the
// target's. The same work matches where the guard is taken off.
func TestInterruptsAreSpared(t *testing.T) {
	vm.NeedFault(t)
	in, _ := newInjector(t)
	c := testCgroup(t, "/softirq")
	loopbackUp(t)
	r := rule(HookSlab, "", unix.ENOMEM)
	const handler = "tcp_v4_rcv"
	work := func() { want(t, c, "connect", 0) }
	if n := matchesWith(t, in, r, handler, c, func(g *guard) { g.task = false }, work); n == 0 {
		t.Error("nothing was allocated in a softirq: the test shows nothing")
	}
	if n := matchesWith(t, in, r, handler, c, func(*guard) {}, work); n != 0 {
		t.Errorf("%d allocations in softirqs matched", n)
	}
}

// K9: allocations with __GFP_NOFAIL, as a new transaction of ext4's journal is.
func TestNoFailIsSpared(t *testing.T) {
	vm.NeedFault(t)
	in, _ := newInjector(t)
	c := testCgroup(t, "/nofail")
	dir := mountDisk(t)
	r := rule(HookSlab, "", unix.ENOMEM)
	r.Kernel.Where = "gfpflags & ___GFP_NOFAIL"
	if _, err := Check(r); err != nil {
		r.Kernel.Where = "gfpflags & (1 << ___GFP_NOFAIL_BIT)"
	}
	if _, err := Check(r); err != nil {
		r.Kernel.Where = "gfpflags & 0x8000"
	}
	work := func() { want(t, c, "write 1 "+dir+"/file", 0); unix.Sync() }
	if n := matchesWith(t, in, r, "", c, func(g *guard) { g.flags = -1 }, work); n == 0 {
		t.Errorf("no allocation matched %q: the test shows nothing", r.Kernel.Where)
	}
	if n := matchesWith(t, in, r, "", c, func(*guard) {}, work); n != 0 {
		t.Errorf("%d allocations that may not fail matched", n)
	}
}

func mountDisk(t *testing.T) string {
	t.Helper()
	disk, dir := vm.Disk(t), t.TempDir()
	if err := unix.Mount(disk, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// The runtime's process in the container's cgroup, before it executes the
// container's program, is spared; so is faultgraft's own.
func TestRuntimeIsSpared(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/runtime")
	r := rule(HookSyscall, "mount", unix.ENOMEM)
	r.Kernel.Backend = mountBackend()
	arm(t, in, Fault{ID: "runtime", Rule: r, Cgroup: c})
	for name, spared := range map[string]bool{"runc:[2:INIT]": true, "runc": false, "crun": true, "crunch": false, "faultgraft": true, "faultgrafted": false, "sh": false} {
		got, _ := act(t, c, "forkedas 1 "+name)
		if want := map[bool]int{true: 0, false: int(unix.ENOMEM)}[spared]; got != want {
			t.Errorf("a fork named %s: status %d, want %d", name, got, want)
		}
	}
}

func TestLittle(t *testing.T) {
	if got := little("bananas\x00"); got != 0x0073616e616e6162 {
		t.Errorf("%#x", got)
	}
	ins := startsWith(slotComm, "runc:[2", "yes", "no")
	if len(ins) != 3*3+2 || !strings.Contains(ins.String(), "yes") { // 4, 2 and 1 bytes
		t.Errorf("%v", ins)
	}
}
