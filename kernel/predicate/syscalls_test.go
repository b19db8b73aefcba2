package predicate_test

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/kernel/predicate"
	"github.com/faultgraft/faultgraft/test/vm"
)

// TestSyscallParams compares the table with what the kernel says in tracefs.
func TestSyscallParams(t *testing.T) {
	vm.Need(t)
	s := spec(t)
	const events = "/sys/kernel/tracing/events/syscalls"
	entries, err := os.ReadDir(events)
	if err != nil {
		t.Skipf("this kernel has no events for system calls (CONFIG_FTRACE_SYSCALLS): %v", err)
	}
	compared := 0
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), "sys_enter_")
		if !ok {
			continue
		}
		text, err := os.ReadFile(filepath.Join(events, e.Name(), "format"))
		if err != nil {
			t.Fatal(err)
		}
		params, err := predicate.SyscallParams(s, name, runtime.GOARCH)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		compared++
		var got, want []string
		for _, p := range params {
			got = append(got, p.Name)
		}
		for line := range strings.Lines(string(text)) {
			field, _, ok := strings.Cut(strings.TrimSpace(line), ";")
			if !ok || !strings.HasPrefix(field, "field:") || strings.HasSuffix(field, " __syscall_nr") {
				continue
			}
			words := strings.Fields(field)
			if n := words[len(words)-1]; !strings.HasPrefix(n, "__") && !strings.HasPrefix(n, "common_") { // contents of strings, Linux 6.18
				want = append(want, n)
			}
		}
		if name == "bpf" && len(want) == 3 { // two more since Linux 7.2 or a little earlier
			got = got[:3]
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has %q, the kernel says %q", name, got, want)
		}
	}
	t.Logf("%d system calls", compared)
}
