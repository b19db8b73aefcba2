package main

import (
	"strings"
	"testing"
)

// TestCountsOfMachines reads what vm.sh writes: a machine that ends in order, and one that dies in a test.
func TestCountsOfMachines(t *testing.T) {
	const output = `building the tests
=== VM BOOT debian-6.1
[    0.1] ACPI noise
booted 6.1.0-50-cloud-amd64 after 2.5 s
=== VM PACKAGE kernel
=== RUN   TestFine
--- PASS: TestFine (0.01s)
=== RUN   TestWrong
    x_test.go:5: mount gave EINVAL
--- FAIL: TestWrong (0.01s)
=== RUN   TestOther
    x_test.go:9: needs a kernel with error injection: make test-vm KERNEL=fault
--- SKIP: TestOther (0.00s)
FAIL
=== VM EXIT kernel 1 93
RESULT 1
=== VM END debian-6.1 7 s: tests failed
=== VM BOOT debian-6.1
booted 6.1.0-50-cloud-amd64 after 2.5 s
=== VM PACKAGE plugin
=== RUN   TestFine
--- PASS: TestFine (0.01s)
PASS
=== VM EXIT plugin 0 7
RESULT 0
=== VM END debian-6.1 7 s: ok
=== VM BOOT fault
booted 6.12.9-fault after 2.5 s
=== VM PACKAGE test/kernel
=== RUN   TestFine
--- PASS: TestFine (0.01s)
=== RUN   TestOops
[    9.1] BUG: kernel NULL pointer dereference
=== VM END fault 7 s: the machine died
`
	var out strings.Builder
	m := &machines{ctx: t.Context(), w: &out}
	if err := m.read(strings.NewReader(output)); err != nil {
		t.Fatal(err)
	}
	// the machine that died is a failure of its own
	if want := (counts{passed: 3, failed: 3, elsewhere: 1}); m.total.counts != want {
		t.Errorf("counts %+v, want %+v in:\n%s", m.total.counts, want, &out)
	}
	for _, want := range []string{"kernel on debian-6.1", "93", "mount gave EINVAL", "FAILED TestOops", "NULL pointer", "the machine died"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report does not say %q:\n%s", want, &out)
		}
	}
	if got := strings.Join(m.ran, ", "); got != "debian-6.1 (6.1.0-50-cloud-amd64), fault (6.12.9-fault)" {
		t.Errorf("it ran on %q", got)
	}
}
