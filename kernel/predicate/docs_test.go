package predicate_test

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/faultgraft/faultgraft/kernel/predicate"
)

// TestDocs compiles the examples of docs/kernel.md for this machine's kernel.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/kernel.md")
	if os.IsNotExist(err) {
		t.Skip("the documentation is not here") // in the emulated machine
	}
	if err != nil {
		t.Fatal(err)
	}
	s := spec(t)
	_, table, _ := strings.Cut(string(page), "| predicate | of |")
	table, _, _ = strings.Cut(table, "\n\n")
	seen := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 || !strings.Contains(cells[1], "`") {
			continue
		}
		text := strings.Trim(cells[1], " `")
		function := strings.Trim(strings.TrimPrefix(strings.TrimSpace(cells[2]), "system call"), " `")
		o := predicate.Options{Spec: s, Function: function, Arguments: predicate.TypedContext(), Fail: "no"}
		if strings.Contains(cells[2], "system call") {
			if o.Params, err = predicate.SyscallParams(s, function, runtime.GOARCH); err != nil {
				t.Error(err)
			}
		} else if err := s.TypeByName(function, new(*btf.Func)); err != nil {
			t.Logf("%s is not in this kernel", function)
			continue
		}
		e, err := predicate.Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		code, err := predicate.Compile(e, o)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		t.Logf("%d instructions: %s", len(code), text)
		seen++
	}
	if seen < 5 {
		t.Errorf("%d examples found", seen)
	}
}
