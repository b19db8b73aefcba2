// Package deaths is for tests that kill an agent with -9 at its failpoints, one at
// a time, and look at what the next agent, or a command, makes of what is left.
package deaths

import (
	"slices"
	"testing"

	"github.com/faultgraft/faultgraft/failpoint"
)

// Scenario brings an agent to points, at each of which it dies. D is a death as the test has it.
type Scenario[D any] struct {
	Name   string
	Points []string
	// Run gives the rules that are to be in force after the next agent's start.
	Run func(D) []string
	// Alone: what a death leaves is also recovered at once, without another agent.
	Alone bool
	// Recurs: a schedule has it begin anew, whatever was recovered.
	Recurs bool
}

// What comes after a death.
const (
	ThenAgent           = "agent"
	ThenRecover         = "recover"
	ThenRecoverAndAgent = "recover, agent"
)

// Step is one death, and what comes after it.
type Step[D any] struct {
	Point, Next string
	Scenario[D]
}

// Walk says what is walked.
type Walk[D any] struct {
	// Mode is "" (each point once, and each scenario), "agent" (all points of all
	// scenarios) or "all" (each of them also with `recover` in the next agent's place).
	Mode      string
	Scenarios []Scenario[D]
	// Own reports whether a point of the program is this walk's: one that no scenario comes to fails.
	Own func(point string) bool
	// AlsoRecovered are the points after which something is in force: what is recovered
	// then, before the next agent's start, is over for that too.
	AlsoRecovered []string
}

// Steps lists the deaths of a walk, and fails if there is a point that has none.
func (w Walk[D]) Steps(t testing.TB) (steps []Step[D]) {
	t.Helper()
	left := slices.DeleteFunc(failpoint.All(), func(p string) bool { return !w.Own(p) })
	seen := map[string]bool{}
	for _, sc := range w.Scenarios {
		first := true
		for i, p := range sc.Points {
			if !slices.Contains(failpoint.All(), p) {
				t.Fatalf("%s: there is no point %s", sc.Name, p)
			}
			left = slices.DeleteFunc(left, func(l string) bool { return l == p })
			if w.Mode == "" && seen[p] && (!first || i != len(sc.Points)-1) {
				continue
			}
			first, seen[p] = false, true
			steps = append(steps, Step[D]{p, ThenAgent, sc})
			if w.Mode == "all" || w.Mode == "agent" && sc.Alone {
				steps = append(steps, Step[D]{p, ThenRecover, sc})
			}
			if slices.Contains(w.AlsoRecovered, p) && !sc.Recurs {
				steps = append(steps, Step[D]{p, ThenRecoverAndAgent, sc})
			}
		}
	}
	for _, p := range left {
		t.Errorf("%s: nobody is killed there", p)
	}
	return steps
}

// Survivor is what is looked at after a death.
type Survivor interface {
	// Want says which rules are to be in force when all is settled.
	Want(rules ...string)
	// Recovered takes everything off while there is no agent.
	Recovered()
	// NextAgent starts another agent, which brings the container to what is wanted, and ends it.
	NextAgent()
	// NothingIsLeft takes everything off and looks at what is there then.
	NothingIsLeft()
}

// Take is one step: a death and what comes after it.
func Take[D Survivor](d D, st Step[D]) {
	d.Want(st.Run(d)...)
	if st.Next == ThenRecoverAndAgent {
		d.Recovered()
	}
	if st.Next != ThenRecover {
		d.NextAgent()
	}
	d.NothingIsLeft()
}
