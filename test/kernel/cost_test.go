package kernel

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	faults "github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/vm"
)

// hitsEnv makes this test binary a process that hits a hook point on demand.
const hitsEnv = "FAULTGRAFT_TEST_HITS"

func TestMain(m *testing.M) {
	if what := os.Getenv(hitsEnv); what != "" {
		if err := hit(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(agentEnv) != "" {
		if err := serveAgent(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// hit reads numbers from stdin and makes as many system calls for each, then
// answers one byte. Raw calls only: with a fault on allocations little else works.
func hit(what string) error {
	goruntime.LockOSThread()
	one := map[string]func(){
		"getpgid": func() { _, _, _ = unix.RawSyscall(unix.SYS_GETPGID, 0, 0, 0) },
		"open": func() {
			if fd, err := unix.Open("/dev/null", unix.O_RDONLY, 0); err == nil {
				_ = unix.Close(fd)
			}
		},
		"page": func() {
			if m, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err == nil {
				m[0] = 1
				_ = unix.Munmap(m)
			}
		},
	}[what]
	if what == "bio" {
		fd, err := unix.Open(os.Getenv("FAULTGRAFT_VM_DISK"), unix.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			return err
		}
		m, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err
		}
		one = func() { _, _ = unix.Pread(fd, m, 0) }
	}
	var n [8]byte
	for {
		if got, err := unix.Read(0, n[:]); err != nil || got != len(n) {
			return err
		}
		for range binary.LittleEndian.Uint64(n[:]) {
			one()
		}
		if _, err := unix.Write(1, n[:1]); err != nil {
			return err
		}
	}
}

// hitter is such a process, in a cgroup.
type hitter struct {
	in  io.WriteCloser
	out io.ReadCloser
	cmd *exec.Cmd
}

func startHitter(b *testing.B, what, cgroup string) *hitter {
	b.Helper()
	if err := os.MkdirAll("/sys/fs/cgroup"+cgroup, 0o755); err != nil {
		b.Fatal(err)
	}
	h := &hitter{cmd: exec.Command("/proc/self/exe")}
	h.cmd.Env = append(os.Environ(), hitsEnv+"="+what)
	h.cmd.Stderr = os.Stderr
	h.cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS} // as a container has
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	if h.out, err = h.cmd.StdoutPipe(); err != nil {
		b.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = h.in.Close()
		_ = h.cmd.Wait()
	})
	if err := os.WriteFile(filepath.Join("/sys/fs/cgroup"+cgroup, "cgroup.procs"), []byte(itoa(h.cmd.Process.Pid)), 0); err != nil {
		b.Fatal(err)
	}
	return h
}

func (h *hitter) hit(b *testing.B, n int) {
	b.Helper()
	if _, err := h.in.Write(binary.LittleEndian.AppendUint64(nil, uint64(n))); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(h.out, make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
}

// cost measures hits by the kernel's statistics of programs: ns/hit is of the
// program at the hook, ns/chain of those at the frames of its call chain, both
// for each hit; ns/call is the time of the whole system call. They are medians
// over batches, because the machine's processors stand still when the host is busy.
func cost(b *testing.B, h *hitter) {
	b.Helper()
	const batches = 40
	batch := max(b.N/batches, 1)
	h.hit(b, 100)
	at := programs(b)
	var perHit, perChain, perCall []float64
	for range batches {
		hook, chain := at.statistics(b)
		start := time.Now()
		h.hit(b, batch)
		perCall = append(perCall, float64(time.Since(start))/float64(batch))
		hookNow, chainNow := at.statistics(b)
		if hits := float64(hookNow.RunCount - hook.RunCount); hits > 0 {
			perHit = append(perHit, float64(hookNow.Runtime-hook.Runtime)/hits)
			perChain = append(perChain, float64(chainNow.Runtime-chain.Runtime)/hits)
		}
	}
	b.ReportMetric(0, "ns/op") // says nothing: b.N is divided into batches
	b.ReportMetric(median(perCall), "ns/call")
	if len(at.hook) == 0 {
		return
	}
	if len(perHit) == 0 {
		b.Fatal("the program at the hook never ran")
	}
	b.ReportMetric(median(perHit), "ns/hit")
	b.ReportMetric(median(perChain), "ns/chain")
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// attached are the programs of package kernel, and of this file.
type attached struct{ hook, chain []*ebpf.Program }

func programs(b *testing.B) attached {
	b.Helper()
	var a attached
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return a
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		b.Cleanup(func() { _ = p.Close() })
		info, err := p.Info()
		switch {
		case err != nil || info.Name == "" || p.Type() == ebpf.CGroupDevice:
		case slices.ContainsFunc([]string{"slab", "page", "bio", "syscall", "lsm", "peer"}, func(kind string) bool {
			full := "faultgraft_" + kind
			return info.Name == full[:min(len(full), 15)] // what the kernel keeps of a name
		}):
			a.hook = append(a.hook, p)
		default:
			a.chain = append(a.chain, p)
		}
	}
}

// statistics sums them up.
func (a attached) statistics(b *testing.B) (hook, chain ebpf.ProgramStats) {
	b.Helper()
	sum := func(ps []*ebpf.Program) (all ebpf.ProgramStats) {
		for _, p := range ps {
			s, err := p.Stats()
			if err != nil {
				b.Fatal(err)
			}
			all.Runtime += s.Runtime
			all.RunCount += s.RunCount
		}
		return all
	}
	return sum(a.hook), sum(a.chain)
}

// BenchmarkCost is what a hook point costs those outside of a fault's cgroup
// and those inside, in the emulated machine: compare lines with each other.
func BenchmarkCost(b *testing.B) {
	vm.NeedFault(b)
	enabled, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = enabled.Close() }()
	hook := func(kind, name string, errno unix.Errno) policy.KernelFault {
		return policy.KernelFault{Hook: policy.Hook{Kind: kind, Name: name}, Error: policy.Errno(errno)}
	}
	by := func(backend string, k policy.KernelFault) policy.KernelFault { k.Backend = backend; return k }
	within := func(function string, k policy.KernelFault) policy.KernelFault {
		k.Within = []policy.Frame{{Function: function}}
		return k
	}
	for _, c := range []struct {
		name, hits string
		fault      policy.KernelFault
		noFault    bool // not with errors: the process would die of them
	}{
		{"syscall_fmod_ret", "getpgid", by(faults.FmodRet, hook("syscall", "getpgid", unix.EPERM)), false},
		{"syscall_override", "getpgid", by(faults.Override, hook("syscall", "getpgid", unix.EPERM)), false},
		{"lsm", "open", hook("lsm", "file_open", unix.EIO), false},
		{"lsm_chain_by_stack", "open", within("path_openat", hook("lsm", "file_open", unix.EIO)), false},
		{"slab", "open", hook("slab", "", unix.ENOMEM), false},
		{"slab_chain_by_state", "open", within("path_openat", hook("slab", "", unix.ENOMEM)), false},
		{"page_chain_by_state", "page", within("do_anonymous_page", hook("page", "", unix.ENOMEM)), true},
		{"bio", "bio", hook("bio", "", unix.EIO), false},
	} {
		b.Run(c.name+"/without", func(b *testing.B) { cost(b, startHitter(b, c.hits, "/cost/target")) })
		for _, state := range []string{"outside", "no_match", "match", "injecting"} {
			if state == "injecting" && c.noFault {
				continue
			}
			b.Run(c.name+"/"+state, func(b *testing.B) {
				k, trigger := c.fault, policy.Trigger{P: 1, TTL: time.Hour, Seeded: true}
				cgroup := "/cost/target"
				switch state {
				case "outside":
					cgroup = "/cost/other"
				case "no_match":
					k.Caller.Comm = []string{"nobody"}
				case "match":
					trigger.After = math.MaxInt64
				}
				h := startHitter(b, c.hits, cgroup)
				arm(b, k, trigger, h.cmd.Process.Pid)
				cost(b, h)
			})
		}
	}
	b.Run("empty_program/outside", func(b *testing.B) { // what the measuring costs
		h := startHitter(b, "getpgid", "/cost/other")
		peerProgram(b, "peer", "__x64_sys_getpgid", false, asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()})
		cost(b, h)
	})
	b.Run("injectpy_slab_chain/outside", func(b *testing.B) { // a process outside of the call chain
		h := startHitter(b, "page", "/cost/other")
		injectPy(b, "path_openat", false)
		cost(b, h)
	})
	b.Run("injectpy_slab_chain/match", func(b *testing.B) {
		h := startHitter(b, "open", "/cost/other")
		injectPy(b, "path_openat", false)
		cost(b, h)
	})
}

// arm puts a rule in force in the cgroup /cost/target, for a container with this process.
func arm(b *testing.B, k policy.KernelFault, trigger policy.Trigger, pid int) {
	b.Helper()
	in, err := faults.New(faults.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := in.Close(); err != nil {
			b.Error(err)
		}
	})
	if err := os.MkdirAll("/sys/fs/cgroup/cost/target", 0o755); err != nil {
		b.Fatal(err)
	}
	// bio faults are scoped by the io controller
	if err := os.WriteFile("/sys/fs/cgroup/cost/cgroup.subtree_control", []byte("+io"), 0); err != nil {
		b.Fatal(err)
	}
	cgroup, err := faults.CgroupAt("/cost/target")
	if err != nil {
		b.Fatal(err)
	}
	rule := policy.Rule{Name: "cost", Kernel: &k, Trigger: trigger}
	if _, err := in.Arm(b.Context(), faults.Fault{ID: "cost", Rule: rule, Cgroup: cgroup, PID: pid}); err != nil {
		b.Fatal(err)
	}
}

// peerProgram attaches a kprobe of this benchmark.
func peerProgram(b *testing.B, name, function string, ret bool, ins asm.Instructions) {
	b.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "faultgraft_" + name, Type: ebpf.Kprobe, License: "GPL", Instructions: ins})
	if err != nil {
		b.Fatalf("%s: %+v", name, err)
	}
	b.Cleanup(func() { _ = p.Close() })
	attach := link.Kprobe
	if ret {
		attach = link.Kretprobe
	}
	l, err := attach(function, p, nil)
	if err != nil {
		b.Fatalf("%s at %s: %v", name, function, err)
	}
	b.Cleanup(func() { _ = l.Close() })
}
