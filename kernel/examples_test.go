package kernel

import (
	"errors"
	"os"
	"regexp"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/faultgraft/faultgraft/policy"
)

// TestExamples checks the rules of docs/kernel.md against the running kernel's
// types. That the kernel has no backend or no function for some is not what is wrong with them.
func TestExamples(t *testing.T) {
	page, err := os.ReadFile("../docs/kernel.md")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("the documentation is not here") // a test binary that was copied
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := btf.LoadKernelSpec(); err != nil {
		t.Skipf("this kernel has no type information: %v", err)
	}
	examples := regexp.MustCompile("`(kernel [a-zA-Z]+=[^`…]*)`").FindAllStringSubmatch(string(page), -1)
	for _, m := range examples {
		r, err := policy.ParseRule("example", m[1], policy.Defaults{})
		if err != nil {
			t.Error(err)
			continue
		}
		var wrong *policy.SyntaxError
		if _, err := Check(r); errors.As(err, &wrong) {
			t.Errorf("%s: %v", m[1], err)
		}
	}
	if len(examples) < 10 {
		t.Errorf("the page has only %d examples", len(examples))
	}
}

// TestCheckTypes shows that a wrong predicate is refused also where the kernel
// has no backend for the rule, at its place in the text.
func TestCheckTypes(t *testing.T) {
	if _, err := btf.LoadKernelSpec(); err != nil {
		t.Skipf("this kernel has no type information: %v", err)
	}
	for text, column := range map[string]int{
		"kernel hook=slab(s->size >)": 27,
		`kernel hook=slab within=path_mount,d_alloc_parallel(name->name == "a" && nme)`: 74,
		"kernel hook=lsm:file_open(file->f_no_such == 1) error=EIO":                     33,
		`kernel hook=syscall:mount(type == "ext4" && flgs & 1) error=EIO`:               45,
		"kernel hook=lsm:file_open error=EIO within=vfs_write(file->f_flags & x.y)":     70,
	} {
		r, err := policy.ParseRule("rule", text, policy.Defaults{})
		if err != nil {
			t.Error(err)
			continue
		}
		var wrong *policy.SyntaxError
		if _, err := Check(r); !errors.As(err, &wrong) || wrong.Column != column {
			t.Errorf("%s: error %v, want one at column %d", text, err, column)
		}
	}
}
