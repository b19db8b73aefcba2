package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// ownNames are the names (comm) of what runs in a container's cgroup and is not
// the container: faultgraft's hooks, which the runtime starts there. The second
// is that of the binary as an NRI plugin that containerd starts.
var ownNames = []string{"faultgraft\x00", "10-faultgraft\x00"}

// runtimeNames begin the names of runtimes' processes that have entered the
// container's cgroup and namespaces and have not yet executed its program: runc
// names them "runc:[1:CHILD]" and "runc:[2:INIT]" before it enters a namespace
// (libcontainer/nsenter/nsexec.c), crun and youki keep or set these. They are
// only looked for where a process has not executed anything since its fork.
var runtimeNames = []string{"runc:[", "crun\x00", "youki:["}

// maxRuntime is how many mount namespaces the runtime's processes are known by.
const maxRuntime = 3

// runtimeNamespaces are the numbers of mount namespaces, 0 for none. What is in
// one of them is the runtime's although it is in the container's cgroup: `runc
// exec` puts its first process there when it forks it, which executes runc, has
// no name of its own yet and leaves the host's namespaces later.
type runtimeNamespaces [maxRuntime]uint64

// runtimesOf gives the mount namespaces that a runtime enters the cgroup of a
// process from: that of this process, of process 1, and of who started the
// first process of the cgroup, such as a containerd-shim. There are none for what
// shares one of them: it could not be told from the runtime.
func runtimesOf(pid int, c Cgroup) (found runtimeNamespaces, err error) {
	if pid == 0 {
		return found, nil
	}
	var own []uint64
	from := []int{os.Getpid(), 1}
	for at := pid; at > 0; {
		n, err := mountNamespace(at)
		if err != nil {
			return found, err
		}
		own = append(own, n)
		parent, err := parentOf(at)
		if err != nil {
			return found, err
		}
		if parent == 0 { // of another PID namespace than ours
			break
		}
		of, err := CgroupOf(parent)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return found, err
		}
		if err != nil || of.ID != c.ID && !within(of.Path, c.Path) {
			from = append(from, parent)
			break
		}
		at = parent
	}
	n := 0
	for _, p := range from {
		at, err := mountNamespace(p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue // the parent has ended, or process 1 is not to be looked at
		} else if err != nil {
			return found, err
		}
		if !slices.Contains(own, at) && !slices.Contains(found[:], at) {
			found[n] = at
			n++
		}
	}
	return found, nil
}

// mountNamespace is the number of a process's mount namespace, the inode of
// /proc/PID/ns/mnt: ns_common.inum in the kernel.
func mountNamespace(pid int) (uint64, error) {
	var st unix.Stat_t
	path := fmt.Sprintf("/proc/%d/ns/mnt", pid)
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// parentOf reads the parent of a process from /proc/PID/stat; 0 is one of
// another PID namespace. The name, in parentheses, may have any characters.
func parentOf(pid int) (int, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 2 {
		return 0, fmt.Errorf("%s: no parent in %q", path, text)
	}
	return strconv.Atoi(fields[1])
}

// entered lets pass what is not in a mount namespace of the target's runtime. R8
// is the task. A thread that ends has no namespaces any more (exit_task_namespaces,
// kernel/nsproxy.c) and passes.
func entered(l *layout) asm.Instructions {
	const yes = "entered"
	ins := asm.Instructions{
		asm.LoadMem(asm.R2, regTarget, atRuntime, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, yes),
		asm.LoadMem(asm.R1, asm.R8, l.offset("task_struct", "nsproxy"), asm.DWord),
		asm.JEq.Imm(asm.R1, 0, yes),
		asm.LoadMem(asm.R1, asm.R1, l.offset("nsproxy", "mnt_ns"), asm.DWord),
		asm.JEq.Imm(asm.R1, 0, yes),
		asm.LoadMem(asm.R1, asm.R1, l.offset("mnt_namespace", "ns", "inum"), asm.Word),
		asm.JEq.Imm(asm.R1, 0, yes), // as are places of the list that are not used
		asm.JEq.Reg(asm.R1, asm.R2, labelMiss),
	}
	for i := int16(1); i < maxRuntime; i++ {
		ins = append(ins,
			asm.LoadMem(asm.R2, regTarget, atRuntime+8*i, asm.DWord),
			asm.JEq.Reg(asm.R1, asm.R2, labelMiss),
		)
	}
	return append(ins, asm.Mov.Imm(asm.R1, 0).WithSymbol(yes))
}
