package chain

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// traceable finds out how a function can be traced. What cannot be read
// beforehand is found out when a program is attached.
type traceable struct {
	spec  *btf.Spec
	cache *btf.Cache
	known *known
}

var (
	filterLists = []string{"/sys/kernel/tracing/available_filter_functions", "/sys/kernel/debug/tracing/available_filter_functions"}
	blacklists  = []string{"/sys/kernel/debug/kprobes/blacklist"}
)

// names reads one field of each line of the first of the files that can be read.
func names(paths []string, field int) map[string]bool {
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			continue
		}
		found := map[string]bool{}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			if f := strings.Fields(lines.Text()); len(f) > field {
				found[f[field]] = true
			}
		}
		_ = file.Close() // only read
		if lines.Err() == nil && len(found) > 0 {
			return found
		}
	}
	return nil
}

// neverReturn are functions that end the thread. A trampoline that is never left
// leaks (the kernel refuses it from 6.15 on, noreturn_deny in
// kernel/bpf/verifier.c); a kretprobe is let go when the thread ends.
var neverReturn = map[string]bool{
	"do_exit": true, "do_group_exit": true, "make_task_dead": true, "kthread_exit": true,
	"__x64_sys_exit": true, "__x64_sys_exit_group": true, "__arm64_sys_exit": true, "__arm64_sys_exit_group": true,
}

// tracer says how the function can be traced, or why it cannot.
func (t traceable) tracer(f function) (tracer, error) {
	if !f.whole && len(f.clones) > 1 {
		return 0, fmt.Errorf("the compiler made %s of it: its entry and its return cannot be traced in one place", strings.Join(f.clones, ", "))
	}
	symbol := f.name
	if !f.whole {
		symbol = f.clones[0]
		if strings.Contains(symbol, ".part.") || strings.Contains(symbol, ".cold") {
			return 0, fmt.Errorf("it is inlined but for %s: its entry cannot be traced", symbol)
		}
	}
	seen := t.known.filter == nil || t.known.filter[symbol]
	if f.whole && seen && !neverReturn[f.name] && t.prototype(f) != nil {
		return trampoline, nil
	}
	switch {
	case t.known.blacklist[symbol]:
		return 0, errors.New("the kernel allows no probe on it (see /sys/kernel/debug/kprobes/blacklist)")
	case !kprobes():
		return 0, errors.New("the kernel has no type information for it, and no kprobes (CONFIG_KPROBE_EVENTS)")
	}
	return kprobe, nil
}

// kprobes says whether the kernel attaches kprobes by perf_event_open(2), Linux 4.17.
func kprobes() bool {
	_, err := os.Stat("/sys/bus/event_source/devices/kprobe")
	return err == nil
}

// prototype is what BTF says about the function; nil if nothing, or if a
// trampoline cannot pass its parameters on (arch/x86/net/bpf_jit_comp.c and
// btf_distill_func_proto in kernel/bpf/btf.c: at most 12 parameters, no variable number of them).
func (t traceable) prototype(f function) *btf.Func {
	spec, err := t.types(f.module)()
	if err != nil {
		return nil
	}
	all, err := spec.AnyTypesByName(f.name)
	if err != nil {
		return nil
	}
	for _, typ := range all {
		fn, ok := typ.(*btf.Func)
		if !ok {
			continue
		}
		proto, ok := fn.Type.(*btf.FuncProto)
		const most = 12
		if ok && len(proto.Params) <= most && !slices.ContainsFunc(proto.Params, variable) {
			return fn
		}
	}
	return nil
}

// variable is how BTF writes the "..." of a parameter list.
func variable(p btf.FuncParam) bool {
	_, void := p.Type.(*btf.Void)
	return void
}

// types gives the types of the kernel or of one of its modules.
func (t traceable) types(module string) func() (*btf.Spec, error) {
	return func() (*btf.Spec, error) {
		if module == "" {
			return t.spec, nil
		}
		return t.cache.Module(module)
	}
}
