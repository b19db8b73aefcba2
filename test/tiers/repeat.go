package main

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// maxAgain is how many failed tests of a tier are run again. More of them are no
// accident of a busy machine.
const maxAgain = 3

// repeat runs the tests of r that failed once more, each alone: thousands of tests
// on a shared machine with two processors are not all steady, and one that is not
// must not hide what the others say. What passes then counts as passed and is
// named at the end of all output; what fails again has failed.
func (t tier) repeat(ctx context.Context, r *results, w io.Writer) (flaky []string, err error) {
	if r.broken || len(r.failures) == 0 || len(r.failures) > maxAgain {
		return nil, nil
	}
	steady := true
	for _, f := range r.failures {
		name := strings.TrimPrefix(f.pkg, module+"/") + " " + f.test
		if _, err := fmt.Fprintf(w, "  again: %s\n", name); err != nil {
			return nil, err
		}
		second, err := t.again(ctx, t, f, w)
		if err != nil {
			return nil, err
		}
		if second.failed > 0 || second.passed == 0 {
			steady = false
			continue
		}
		flaky = append(flaky, name)
	}
	if steady {
		r.passed += r.failed
		r.failed = 0
	}
	return flaky, nil
}
