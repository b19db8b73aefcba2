package main

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

var (
	length = flag.Duration("length", time.Second, "how long the soak of the tests does steps, but each kind once; 0: not at all")
	seed   = flag.Uint64("seed", 7, "seed of the soak of the tests")
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// What `make soak` does for hours, for some seconds: each kind of step once, all
// kills among them, under all three programs, and the whole checkpoint after them.
func TestSoak(t *testing.T) {
	if *length == 0 {
		t.Skip("-length 0")
	}
	l := lab.RequireDatabases(t)
	var out strings.Builder
	s, err := newSoak(l, options{length: *length, checkpoint: time.Hour, seed: *seed, takeover: true}, &out)
	if err != nil {
		t.Fatal(err)
	}
	err = s.run(t.Context())
	t.Log(out.String())
	if err != nil {
		t.Error(err)
	}
}

// The same seed draws the same steps, whatever is left out of other kinds later in a run.
func TestSequenceRepeats(t *testing.T) {
	describe := func(seed uint64) string {
		var b strings.Builder
		s := &soak{targets: []*target{{name: "a", paths: []string{"/data", "/data/x"}}}}
		for n := range 500 {
			st := drawStep(seed, n, nil)
			b.WriteString(st.kind.name + " " + st.rest.String() + " " + strings.Join(s.inject(st.draw), " ") + "\n")
		}
		return b.String()
	}
	first := describe(7)
	if describe(7) != first {
		t.Error("a seed gives two sequences")
	}
	if describe(8) == first {
		t.Error("two seeds give one sequence")
	}
	for _, k := range kinds() {
		if !strings.Contains(first, "\n"+k.name+" ") {
			t.Errorf("no step %s among 500", k.name)
		}
	}
}
