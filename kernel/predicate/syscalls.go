package predicate

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// syscallTable has the parameters of system calls as SYSCALL_DEFINE declares them
// in Linux 6.1 (and what was added until 7.2), one prototype in C a line, sorted by name. A
// line for one architecture begins with its GOARCH.
//
// BTF has them not: the function behind a system call gets a struct pt_regs, and
// __do_sys_NAME, which has the parameters, is mostly inlined. tracefs has them
// only where CONFIG_FTRACE_SYSCALLS is on and for those who may read it.
//
//go:embed syscalls.txt
var syscallTable string

// syscallNames are system calls whose function in the kernel has another name.
var syscallNames = map[string]string{
	"stat": "newstat", "fstat": "newfstat", "lstat": "newlstat", "uname": "newuname",
	"umount2": "umount", "sendfile": "sendfile64",
}

var syscalls = sync.OnceValue(func() map[string]string {
	table := map[string]string{}
	for line := range strings.Lines(syscallTable) {
		name, params, ok := strings.Cut(strings.TrimSuffix(line, ")\n"), "(")
		if ok {
			table[name] = params
		}
	}
	return table
})

// SyscallFunction gives the name that the kernel's function of a system call has
// after its prefix: newstat for stat. Most have the name of the system call.
func SyscallFunction(name string) string {
	if other, ok := syscallNames[name]; ok {
		return other
	}
	return name
}

// SyscallParams gives the parameters of a system call, by its name without prefix,
// on an architecture (a GOARCH). They are named as in the kernel's source; pointers
// are to user space.
func SyscallParams(spec *btf.Spec, name, arch string) ([]btf.FuncParam, error) {
	table := syscalls()
	text, ok := table[arch+" "+SyscallFunction(name)]
	if !ok {
		text, ok = table[SyscallFunction(name)]
	}
	if !ok {
		err := fmt.Errorf("the parameters of the system call %s are not known", name)
		if c := closest(name, Syscalls()); c != "" {
			return nil, fmt.Errorf("%w; did you mean %s?", err, c)
		}
		return nil, err
	}
	list, wrong := parseParams(text)
	if wrong != nil {
		return nil, fmt.Errorf("parameters of the system call %s: %w", name, wrong)
	}
	params := make([]btf.FuncParam, 0, len(list))
	for _, d := range list {
		t, err := d.resolve(spec)
		if err != nil {
			return nil, fmt.Errorf("parameter %s of the system call %s: %w", d.name, name, err)
		}
		params = append(params, btf.FuncParam{Name: d.name, Type: t})
	}
	return params, nil
}

// Syscalls lists the system calls whose parameters are known, sorted.
func Syscalls() []string {
	var names []string
	for n := range syscalls() {
		if !strings.Contains(n, " ") {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}
