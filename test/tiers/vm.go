package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// vmKernels are what contrib/testkernel/vm.sh is given.
var vmKernels = []string{"fault", "debian-6.1", "debian"}

// vmTest boots an emulated machine for each kernel and runs the tier's packages
// in it. What it ran on is in the note.
func vmTest(ctx context.Context, _ tier, packages []string, w io.Writer) (results, string, error) {
	kernels, left := vmKernels, ""
	if os.Getenv("CI") != "true" && !haveFaultKernel() {
		kernels = vmKernels[1:]
		left = "; NOT on a kernel with error injection: there is none (TEST_KERNEL=image, or build one: make test-vm)"
	}
	r, note, err := inMachines(ctx, kernels, packages, ".", w)
	return r, note + left, err
}

// vmTestAgain boots the machine in which a test failed for that one test.
func vmTestAgain(ctx context.Context, _ tier, f failure, w io.Writer) (results, error) {
	pkg, kernel, _ := strings.Cut(f.pkg, onKernel)
	if strings.HasPrefix(kernel, "debian") && kernel != "debian-6.1" {
		kernel = "debian" // by the name that vm.sh knows, not by the version that it has now
	}
	r, _, err := inMachines(ctx, []string{kernel}, []string{pkg}, "^"+f.test+"$", w)
	return r, err
}

// onKernel stands between a package and the kernel that it ran on.
const onKernel = " on "

func inMachines(ctx context.Context, kernels, packages []string, only string, w io.Writer) (results, string, error) {
	cmd := exec.CommandContext(ctx, "contrib/testkernel/vm.sh", kernels...)
	folders := make([]string, len(packages))
	for i, p := range packages {
		folders[i] = strings.TrimPrefix(p, module+"/")
	}
	cmd.Env = append(os.Environ(), "TESTKERNEL_FORMAT=test2json", "ONLY="+only, "PACKAGES="+strings.Join(folders, " "))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	out, err := cmd.StdoutPipe()
	if err != nil {
		return results{}, "", err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return results{}, "", err
	}
	m := &machines{ctx: ctx, w: w}
	rerr := m.read(out)
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case rerr != nil:
		return m.total, "", errors.Join(rerr, err)
	case err != nil && !errors.As(err, &exit):
		return m.total, "", err
	case err != nil && m.total.failed == 0: // it did not get to run them
		return m.total, "", fmt.Errorf("contrib/testkernel/vm.sh: %w:\n%s", err, strings.Join(m.last, "\n"))
	}
	return m.total, onKernel + strings.Join(m.ran, ", "), nil
}

// haveFaultKernel: TEST_KERNEL, or one that was built before.
func haveFaultKernel() bool {
	if os.Getenv("TEST_KERNEL") != "" {
		return true
	}
	cache := os.Getenv("TESTKERNEL_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return false
		}
		cache = filepath.Join(dir, "faultgraft", "testkernel")
	}
	_, err := os.Stat(filepath.Join(cache, "fault", "complete"))
	return err == nil
}

// machines reads the output of vm.sh: lines that begin with "=== VM " say where
// a machine and a test program begin and end.
type machines struct {
	ctx   context.Context
	w     io.Writer
	total results
	ran   []string // kernels with their releases

	kernel  string
	program string          // the package that runs
	text    strings.Builder // its output
	last    []string        // the last lines of all output
}

const lastLines = 40

func (m *machines) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		line := lines.Text()
		if m.last = append(m.last, line); len(m.last) > lastLines {
			m.last = m.last[1:]
		}
		if err := m.line(line); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (m *machines) line(line string) error {
	rest, ok := strings.CutPrefix(line, "=== VM ")
	word, rest, _ := strings.Cut(rest, " ")
	switch {
	case !ok && m.program != "":
		m.text.WriteString(line + "\n")
	case !ok && strings.HasPrefix(line, "booted "):
		release, _, _ := strings.Cut(strings.TrimPrefix(line, "booted "), " ")
		if k := m.kernel + " (" + release + ")"; !slices.Contains(m.ran, k) { // it has several machines
			m.ran = append(m.ran, k)
		}
	case !ok:
	case word == "BOOT":
		m.kernel = rest
	case word == "PACKAGE":
		m.program = rest
		m.text.Reset()
	case word == "EXIT":
		_, rest, _ = strings.Cut(rest, " ")
		status, took, _ := strings.Cut(rest, " ")
		return m.finish(status, took)
	case word == "END":
		return m.end(rest)
	}
	return nil
}

// finish counts the program that ended with this status after so many seconds, or died with its machine.
func (m *machines) finish(status, took string) error {
	name := m.program + onKernel + m.kernel
	m.program = ""
	cmd := exec.CommandContext(m.ctx, "go", "tool", "test2json", "-p", name)
	cmd.Stdin = strings.NewReader(m.text.String())
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go tool test2json: %w", err)
	}
	// what the program printed last is no proof of how it ended, and the time is not in it
	end := event{Action: "pass", Package: name}
	end.Elapsed, _ = strconv.ParseFloat(took, 64) // nobody says it of one that died
	if status != "0" {
		end.Action = "fail"
	}
	var events bytes.Buffer
	for line := range bytes.Lines(out) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("go tool test2json: %w in %q", err, line)
		}
		if e.Test != "" || e.Action == "output" {
			events.Write(line)
		}
	}
	if err := json.NewEncoder(&events).Encode(end); err != nil {
		return err
	}
	r, err := read(&events, m.w)
	m.total.merge(r)
	return err
}

// end takes what vm.sh says of the whole machine: "KERNEL 20 s: ok".
func (m *machines) end(text string) error {
	if m.program != "" {
		if err := m.finish("died", ""); err != nil {
			return err
		}
	}
	lines := ""
	if !strings.HasSuffix(text, ": ok") && !strings.HasSuffix(text, ": tests failed") {
		m.total.failed++
		m.total.broken = true
		lines = indent(strings.Join(m.last, "\n"))
	}
	_, err := fmt.Fprintf(m.w, "  machine with %s\n%s", text, lines)
	return err
}
