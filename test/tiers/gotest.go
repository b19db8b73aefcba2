package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// counts are of tests without subtests: of leaves.
type counts struct {
	passed, failed, skipped int
	// elsewhere are skipped because they run in the emulated machine, or there on another kernel.
	elsewhere int
}

// failure is a test that failed: a whole one, with its subtests.
type failure struct{ pkg, test string }

// results are what a run came to.
type results struct {
	counts
	failures []failure
	// broken: a package did not build, or died outside of a test.
	broken bool
}

func (r *results) merge(o results) {
	r.add(o.counts)
	r.failures = append(r.failures, o.failures...)
	r.broken = r.broken || o.broken
}

func (c *counts) add(o counts) {
	c.passed += o.passed
	c.failed += o.failed
	c.skipped += o.skipped
	c.elsewhere += o.elsewhere
}

// event is a line of `go test -json`: `go doc test2json`.
type event struct {
	Action  string
	Package string
	// ImportPath is the package of build-output, as in "pkg [pkg.test]".
	ImportPath string
	Test       string
	Elapsed    float64
	Output     string
}

// goTest runs a tier's packages and tells w how each one went.
func goTest(ctx context.Context, t tier, packages []string, w io.Writer) (results, string, error) {
	r, err := goTestOnly(ctx, t, packages, ".", w)
	return r, "", err
}

// goTestAgain runs one test alone.
func goTestAgain(ctx context.Context, t tier, f failure, w io.Writer) (results, error) {
	return goTestOnly(ctx, t, []string{f.pkg}, "^"+f.test+"$", w)
}

func goTestOnly(ctx context.Context, t tier, packages []string, only string, w io.Writer) (results, error) {
	args := append([]string{"test", "-json", "-count=1", "-timeout=30m", "-run=" + only}, t.flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	// an interrupt goes to go test, which ends the test programs, so that they can clean up
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = time.Minute
	return report(cmd, w)
}

// report runs cmd, a `go test -json`, and sums its events up.
func report(cmd *exec.Cmd, w io.Writer) (results, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return results{}, err
	}
	var msg bytes.Buffer
	cmd.Stderr = &msg
	if err := cmd.Start(); err != nil {
		return results{}, err
	}
	total, rerr := read(out, w)
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case rerr != nil:
		return total, errors.Join(rerr, err)
	case err != nil && !errors.As(err, &exit):
		return total, err
	case err != nil && total.failed == 0:
		// go test itself did not get to run them
		return total, fmt.Errorf("go test: %w: %s", err, strings.TrimSpace(msg.String()))
	}
	return total, nil
}

// read takes the events of one go test.
func read(r io.Reader, w io.Writer) (results, error) {
	var total results
	build := map[string]*strings.Builder{}
	packages := map[string]*pkg{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			// not an event: go itself has something to say
			if _, err := fmt.Fprintf(w, "%s\n", lines.Bytes()); err != nil {
				return total, err
			}
			continue
		}
		if e.Action == "build-output" {
			path, _, _ := strings.Cut(e.ImportPath, " ")
			if build[path] == nil {
				build[path] = &strings.Builder{}
			}
			build[path].WriteString(e.Output)
			continue
		}
		if e.Package == "" {
			continue
		}
		p := packages[e.Package]
		if p == nil {
			p = &pkg{results: map[string]string{}, output: map[string]*strings.Builder{}}
			packages[e.Package] = p
		}
		if p.take(e) {
			one, text := p.finish(e)
			total.merge(one)
			delete(packages, e.Package)
			// what failed to build may be a package that this one imports
			for path, b := range build {
				if e.Action == "fail" && b.Len() > 0 {
					text += fmt.Sprintf("    build of %s:\n%s", path, indent(b.String()))
					b.Reset()
				}
			}
			if _, err := io.WriteString(w, text); err != nil {
				return total, err
			}
		}
	}
	return total, lines.Err()
}

// pkg is one package's run.
type pkg struct {
	results map[string]string // by test
	order   []string
	output  map[string]*strings.Builder // by test; "" is the package's own
}

// take notes an event; true when it is the package's last.
func (p *pkg) take(e event) bool {
	switch e.Action {
	case "output":
		if p.output[e.Test] == nil {
			p.output[e.Test] = &strings.Builder{}
		}
		p.output[e.Test].WriteString(e.Output)
	case "run":
		p.order = append(p.order, e.Test)
		p.results[e.Test] = "fail" // until it says otherwise: it may take the program with it
	case "pass", "fail", "skip":
		if e.Test == "" {
			return true
		}
		p.results[e.Test] = e.Action
	}
	return false
}

// finish counts and describes the package; e is its last event.
func (p *pkg) finish(e event) (results, string) {
	var c results
	var details strings.Builder
	for _, name := range p.order {
		result := p.results[name]
		if p.hasChild(name, result) {
			continue
		}
		switch result {
		case "pass":
			c.passed++
		case "skip":
			if strings.Contains(p.text(name), vmCommand) {
				c.elsewhere++
				continue
			}
			c.skipped++
			fmt.Fprintf(&details, "    skipped %s\n%s", name, p.text(name))
		default:
			c.failed++
			if top, _, _ := strings.Cut(name, "/"); !slices.Contains(c.failures, failure{e.Package, top}) {
				c.failures = append(c.failures, failure{e.Package, top})
			}
			fmt.Fprintf(&details, "    FAILED %s\n%s", name, p.text(name))
		}
	}
	word := "ok"
	if e.Action == "fail" {
		word = "FAIL"
		if c.failed == 0 { // did not build, or died outside of a test
			c.failed++
			c.broken = true
		}
		details.WriteString(p.text(""))
	}
	elsewhere := ""
	if c.elsewhere > 0 {
		elsewhere = fmt.Sprintf(" (and %d for a kernel of tier vm)", c.elsewhere)
	}
	return c, fmt.Sprintf("  %-4s %-28s %d passed, %d failed, %d skipped%s, %.1f s\n%s", word,
		strings.TrimPrefix(e.Package, module+"/"), c.passed, c.failed, c.skipped, elsewhere, e.Elapsed, details.String())
}

// vmCommand is in the words in which package test/vm skips.
const vmCommand = "make test-vm"

// hasChild says whether name has a subtest with the same result: then that one counts.
func (p *pkg) hasChild(name, result string) bool {
	for other, r := range p.results {
		if strings.HasPrefix(other, name+"/") && (r == result || result == "pass") {
			return true
		}
	}
	return false
}

// text is a test's output without the frame that go test puts around it.
func (p *pkg) text(name string) string {
	b := p.output[name]
	if b == nil {
		return ""
	}
	var out strings.Builder
	for line := range strings.Lines(b.String()) {
		t := strings.TrimSpace(line)
		if strings.HasPrefix(t, "=== ") || strings.HasPrefix(t, "--- ") || t == "PASS" || t == "FAIL" || strings.HasPrefix(t, "FAIL\t") {
			continue
		}
		out.WriteString(line)
	}
	return indent(out.String())
}

func indent(s string) string {
	var out strings.Builder
	for line := range strings.Lines(s) {
		out.WriteString("      " + strings.TrimSuffix(line, "\n") + "\n")
	}
	return out.String()
}
