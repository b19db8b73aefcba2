package fusefs_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// The model test runs random programs of system calls on the layer and on a
// plain directory side by side (F13). Two processes of their own make the calls
// (model_actor_test.go), each call first on one side, then on the other; what
// it returned, and what can be seen of the files afterwards, must be the same.
// A program that fails is made as short as rapid can make it and is printed.
//
// It runs for some seconds from a fixed seed. For a long soak from random seeds:
//
//	FUSEFS_MODEL=10m go test ./fusefs -run Model -timeout 0

// soak is how long each variant runs, and whether somebody asked for it.
func soak(t *testing.T, usual time.Duration) (time.Duration, bool) {
	s := os.Getenv("FUSEFS_MODEL")
	if s == "" {
		return usual, false
	}
	d, err := time.ParseDuration(s)
	must(t, err)
	return d, true
}

// variant is a way to disturb the layer that a program must not notice.
type variant struct {
	// draw makes the program.
	draw *rapid.Generator[program]
	// prepare is called with the layer before each program.
	prepare func(b *bench)
}

func TestModel(t *testing.T) {
	runModel(t, variant{draw: programs(allOps())}, 8*time.Second)
}

// Rules that match other files, and rules that match these and never fire, come
// and go: files turn from passed through to direct I/O and back while they are open.
func TestModelWhileRulesChange(t *testing.T) {
	runModel(t, variant{
		draw:    rapid.Map(programs(append(allOps(), ruleOp(120))), unswapped),
		prepare: func(b *bench) { b.rules() },
	}, 8*time.Second)
}

// With a rule that matches all operations and never fires nothing is cached.
func TestModelWithRule(t *testing.T) {
	runModel(t, variant{
		draw:    programs(allOps()),
		prepare: func(b *bench) { b.rules("io error=EIO op=all p=0") },
	}, 6*time.Second)
}

// What is done behind the layer is seen when its caches have expired (docs/layer.md).
func TestModelBehindTheLayer(t *testing.T) {
	runModel(t, variant{draw: programsBehind()}, 6*time.Second)
}

func runModel(t *testing.T, v variant, usual time.Duration) {
	length, asked := soak(t, usual)
	// rapid's only way to be told: each program counts as a check, and those after the time are empty.
	for name, value := range map[string]string{"rapid.checks": "1000000", "rapid.nofailfile": "true"} {
		old := flag.Lookup(name).Value.String()
		must(t, flag.Set(name, value))
		t.Cleanup(func() { _ = flag.Set(name, old) })
	}
	if seed := flag.Lookup("rapid.seed"); !asked && seed.Value.String() == "0" {
		must(t, flag.Set("rapid.seed", "3"))
		t.Cleanup(func() { _ = flag.Set("rapid.seed", "0") })
	}
	m := &model{bench: over(t, setup{}), native: t.TempDir()}
	must(t, os.Chmod(m.back, 0o755))
	must(t, os.Chmod(m.native, 0o755))
	t.Cleanup(m.stop)
	end := time.Now().Add(length)
	programs, calls := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		if time.Now().After(end) && !m.failed {
			return
		}
		p := v.draw.Draw(rt, "program")
		if v.prepare != nil {
			v.prepare(m.bench)
		}
		programs++
		calls += len(p)
		if trace, ok := m.run(p); !ok {
			m.failed = true
			rt.Fatalf("layer and plain directory differ at the end of:\n%s", trace)
		}
	})
	t.Logf("%d programs, %d calls", programs, calls)
}

// model is a layer, a plain directory beside it, and the processes that use both.
type model struct {
	*bench
	native string
	actors [2]*actor
	runs   int
	failed bool
}

func (m *model) stop() {
	for i, a := range m.actors {
		if a != nil {
			a.stop()
			m.actors[i] = nil
		}
	}
}

// run runs a program in new directories. What it says is the program, with results.
func (m *model) run(p program) (string, bool) {
	m.runs++
	name := "m" + strconv.Itoa(m.runs)
	dirs := [3]string{m.path(name), filepath.Join(m.native, name), m.under(name)}
	for _, dir := range []string{dirs[0], dirs[1]} {
		must(m, unix.Mkdir(dir, 0))
		must(m, unix.Chmod(dir, 0o777))
	}
	for i := range m.actors {
		if m.actors[i] == nil {
			m.actors[i] = startActor(m)
		}
		m.actors[i].begin(dirs, i == 0)
	}
	var trace strings.Builder
	for slot, o := range firstOpen {
		fmt.Fprintf(&trace, "  fd%d = open(%q, %s)\n", slot, o.name, showFlags(o.flags))
	}
	ok := true
	var after history
	for _, c := range append(p[:len(p):len(p)], call{Op: "tree"}) {
		after.Mapped = after.Mapped || c.Op == "mmap"
		after.Unseen = after.Unseen || c.Op == "mmap" || c.Op == "sendfile" || c.Op == "splice"
		after.Filled = after.Filled || c.Op == "mwrite" || c.Op == "fallocate" && c.Flags&unix.FALLOC_FL_PUNCH_HOLE == 0
		c.After = after
		out, err := m.do(c)
		if err != nil {
			fmt.Fprintf(&trace, "  %s\n    %v\n", c, err)
			m.stop() // it may hang in the call
			return trace.String(), false
		}
		if out[0] == out[1] {
			fmt.Fprintf(&trace, "  %-60s %s\n", c, firstLine(out[0]))
			continue
		}
		fmt.Fprintf(&trace, "  %s\n%s", c, difference(out))
		ok = false
		break
	}
	for _, a := range m.actors {
		if err := a.finish(); err != nil {
			fmt.Fprintf(&trace, "  cleaning up: %v\n", err)
			m.stop()
			return trace.String(), false
		}
	}
	for _, dir := range []string{dirs[0], dirs[1]} {
		if err := m.actors[0].remove(dir); err != nil {
			fmt.Fprintf(&trace, "  remove %s: %v\n", dir, err)
			m.stop()
			return trace.String(), false
		}
	}
	return trace.String(), ok
}

// do does one call at both sides.
func (m *model) do(c call) ([2]string, error) {
	switch c.Op {
	case "rules":
		m.rules(ruleSets[c.Flags]...)
		return [2]string{}, nil
	case "expire":
		time.Sleep(cacheTime)
		return [2]string{}, nil
	}
	return m.actors[c.Proc].call(c)
}

func firstLine(s string) string {
	line, _, more := strings.Cut(s, "\n")
	if more {
		return line + " …"
	}
	return line
}

// difference shows the lines of two results that are not the same.
func difference(out [2]string) string {
	layer, native := strings.Split(out[0], "\n"), strings.Split(out[1], "\n")
	if len(layer) == 1 && len(native) == 1 {
		return fmt.Sprintf("    layer: %s\n    plain: %s\n", out[0], out[1])
	}
	var b strings.Builder
	for _, of := range []struct {
		who         string
		have, other []string
	}{{"layer", layer, native}, {"plain", native, layer}} {
		there := map[string]bool{}
		for _, l := range of.other {
			there[l] = true
		}
		for _, l := range of.have {
			if !there[l] {
				fmt.Fprintf(&b, "    %s: %s\n", of.who, l)
			}
		}
	}
	return b.String()
}
