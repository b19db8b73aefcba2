package main

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// kind is one sort of step.
type kind struct {
	name string
	// weight is how often it comes, among the weights of all.
	weight int
	do     func(s *soak, ctx context.Context, st step) error
}

// kinds are all sorts of steps. Their order and weights are part of what a seed means.
func kinds() []kind {
	return []kind{
		{"graft", 22, (*soak).graft},
		{"rules", 16, (*soak).changeRules},
		{"recover", 12, (*soak).recover},
		{"release", 4, (*soak).releaseHung},
		{"policy", 6, (*soak).policy},
		{"stop-all", 2, (*soak).stopAll},
		{"kill-server", 8, killing(lab.RoleServer)},
		{"kill-keeper", 8, killing(lab.RoleKeeper)},
		{"kill-agent", 5, (*soak).killAgent},
		{"restart-agent", 3, (*soak).restartAgent},
		{"kill-swapper", 6, killingInTheMiddle(lab.RoleSwapper)},
		{"kill-server-in-swap", 3, killingInTheMiddle(lab.RoleServer)},
		{"kill-keeper-in-swap", 3, killingInTheMiddle(lab.RoleKeeper)},
		{"kill-command", 3, killingInTheMiddle(lab.RoleCommand)},
		{"hang-server", 2, (*soak).hangServer},
		{restartContainerd, 1, (*soak).restartContainerd},
	}
}

// restartContainerd is the name of the step that ends sessions of nerdctl exec.
const restartContainerd = "restart-containerd"

// needTakeover are the steps that cost a target what is written in docs/how-a-graft-works.md (files without a name, locks), unless another server takes the layers over.
var needTakeover = []string{"kill-server", "kill-server-in-swap", "hang-server"}

func kindNames() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}

func kindOf(name string) *kind {
	all := kinds()
	if i := slices.IndexFunc(all, func(k kind) bool { return k.name == name }); i >= 0 {
		return &all[i]
	}
	return nil
}

// step is one thing that is done. Seed and number say all that is drawn for it,
// so that a sequence is the same whatever the machine is busy with; on which of
// the grafts that are there by then it acts, and whether it can, is as it comes.
type step struct {
	n    int
	kind kind
	// rest is how long to wait before it.
	rest time.Duration
	// draw is for what else the step is to choose.
	draw *rand.Rand
}

// kindsWithout are the sorts of steps but those that are left out.
func kindsWithout(without []string) []kind {
	return slices.DeleteFunc(kinds(), func(k kind) bool { return slices.Contains(without, k.name) })
}

// drawStep is step n of the sequence of a seed, without the kinds that are left
// out. A sequence begins with each kind once, in an order that is drawn as well.
func drawStep(seed uint64, n int, without []string) step {
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	all := kindsWithout(without)
	st := step{n: n, rest: time.Duration(r.IntN(1000)) * time.Millisecond, draw: r}
	if n < len(all) {
		st.kind = all[rand.New(rand.NewPCG(seed, 0)).Perm(len(all))[n]]
		return st
	}
	sum := 0
	for _, k := range all {
		sum += k.weight
	}
	at, i := r.IntN(sum), 0
	for at >= all[i].weight {
		at -= all[i].weight
		i++
	}
	st.kind = all[i]
	return st
}
