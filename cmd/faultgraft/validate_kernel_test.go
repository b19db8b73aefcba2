package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func TestValidateKernelRule(t *testing.T) {
	got, err := validate("--rule", `kernel hook=slab within=d_alloc_parallel(name->name == "bananas") times=3`)
	want := `ok  kernel hook=slab error=ENOMEM within=d_alloc_parallel(name->name == "bananas") times=3 ttl=10m0s
    does    fails with ENOMEM (cannot allocate memory)
    on      slab allocations
    within  d_alloc_parallel where name->name == "bananas"
    in      the container's cgroup and those below it
    when    all of them, at most 3 times
    from    its activation on
    until   a ttl of 10m0s is over
    here    `
	if err != nil || !strings.HasPrefix(got, want) || strings.Count(got, "\n") != strings.Count(want, "\n")+1 {
		t.Errorf("got\n%s%v\nwant\n%s…", got, err, want)
	}
	got, err = validate("-o", "json", "--rule", "kernel hook=function:no_such_function error=EIO")
	var rules []struct {
		Kernel struct {
			Hook struct{ Kind, Name string }
		}
		GraftPath *string
		Here      struct {
			OK     bool
			Hook   string
			Reason string
		}
	}
	if err == nil {
		err = json.Unmarshal([]byte(got), &rules)
	}
	if err != nil || len(rules) != 1 {
		t.Fatalf("%v\n%s", err, got)
	}
	// That no kernel has the function is not what is wrong with the rule's text.
	if r := rules[0]; r.GraftPath != nil || r.Kernel.Hook.Name != "no_such_function" || r.Here.OK || r.Here.Hook != "function:no_such_function" || r.Here.Reason == "" {
		t.Errorf("%+v\n%s", r, got)
	}
}

// TestValidatePredicate shows K10: a wrong predicate is refused at its place in the rule.
func TestValidatePredicate(t *testing.T) {
	refused := func(marked, message string) {
		t.Helper()
		before, after, _ := strings.Cut(marked, "^")
		out, err := validate("--rule", before+after)
		if err == nil {
			t.Errorf("%s is valid: %s", marked, out)
			return
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != 3 || !strings.Contains(lines[0], message) || lines[1] != "  "+before+after || lines[2] != "  "+strings.Repeat(" ", len(before))+"^" {
			t.Errorf("%s: error\n%v", marked, err)
		}
	}
	refused("kernel hook=slab(s->size >^) error=ENOMEM", "the end where")
	refused(`kernel error=ENOMEM hook=slab within=path_mount,d_alloc_parallel(name->name ==^)`, "the end where")
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		t.Skip("this kernel has no type information (BTF)")
	}
	refused(`kernel hook=slab within=path_mount,d_alloc_parallel(name->^nme == "bananas")`, "did you mean name?")
	refused("kernel hook=lsm:file_open(^fiel->f_flags) error=EIO", "did you mean file?")
}

func TestValidateKernelHelp(t *testing.T) {
	_, err := validate("--rule", "kernel banana=1")
	if err == nil {
		t.Fatal("no error")
	}
	_, list, _ := strings.Cut(strings.Split(err.Error(), "\n")[0], "the fields are ")
	help, err := validate("--help")
	if err != nil || list == "" {
		t.Fatal(list, err)
	}
	for field := range strings.SplitSeq(list, ", ") {
		if !strings.Contains(help, field) {
			t.Errorf("the help does not name %s", field)
		}
	}
}
