package policies

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/selection"
)

// TestChoiceEqualsOneFromScratch is P2: whatever comes, goes, grows older or
// changes its labels, in whatever order, those chosen are those that
// selection.Choose picks of the containers that match now.
func TestChoiceEqualsOneFromScratch(t *testing.T) {
	outer := t
	rapid.Check(t, func(t *rapid.T) {
		n := newNode(outer)
		seed := rapid.Uint64Range(0, 5).Draw(t, "seed")
		mode := rapid.SampledFrom([]faultpolicy.Mode{faultpolicy.ModeAll, faultpolicy.ModeOne, faultpolicy.ModeFixed, faultpolicy.ModeFixedPercent, faultpolicy.ModeRandomMaxPercent}).Draw(t, "mode")
		p := pg(func(s *faultpolicy.Spec) {
			s.Seed, s.Mode = &seed, mode
			if mode != faultpolicy.ModeAll && mode != faultpolicy.ModeOne {
				s.Value = rapid.IntRange(1, 100).Draw(t, "value")
			}
			s.Guard.MaxContainers = rapid.SampledFrom([]int{0, 0, 2}).Draw(t, "maxContainers")
			s.Guard.MaxPercent = rapid.SampledFrom([]int{0, 0, 40}).Draw(t, "maxPercent")
			s.Selector.MinAge = rapid.SampledFrom([]faultpolicy.Duration{0, faultpolicy.Duration(10 * time.Second)}).Draw(t, "minAge")
			s.Selector.MaxAge = rapid.SampledFrom([]faultpolicy.Duration{0, faultpolicy.Duration(time.Minute)}).Draw(t, "maxAge")
		})
		n.apply(p)
		alive := map[string]selection.Container{}
		for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
			id := fmt.Sprintf("c%d", rapid.IntRange(0, 15).Draw(t, "container"))
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			case 0, 1, 2:
				c := n.container(id)
				c.Name = "web"
				if len(id) == 2 { // some share an identity, as replicas by hand might
					c.Name = id
				}
				if rapid.Bool().Draw(t, "other") {
					c.Labels = map[string]string{"app": "other"}
				}
				c.Protected = rapid.IntRange(0, 9).Draw(t, "protected") == 0
				alive[id] = c
				n.s.Observe(c)
			case 3, 4:
				delete(alive, id)
				n.s.Forget(Key{"default", id})
			case 5:
				n.pass(time.Duration(rapid.IntRange(1, 20).Draw(t, "seconds")) * time.Second)
			case 6:
				n.open()
				for _, c := range alive {
					n.s.Observe(c)
				}
			}
			want := fromScratch(n, p, alive)
			var got []string
			for _, target := range n.phaseAny("pg").Targets {
				got = append(got, target.ID)
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Fatalf("step %d: %v are chosen, from scratch %v are", step, got, want)
			}
		}
	})
}

func fromScratch(n *node, p faultpolicy.FaultPolicy, alive map[string]selection.Container) []string {
	sel, err := selection.CompileSelector(p.Spec.Selector)
	n.must(err)
	var matching []*selection.Container
	for _, c := range alive {
		if ok, _ := sel.Matches(&c, n.now); ok && !c.Protected {
			matching = append(matching, &c)
		}
	}
	chosen := selection.Choose(p.Spec.Mode, p.Spec.Value, *p.Spec.Seed, matching)
	if most := p.Spec.Guard.MaxContainers; most > 0 {
		chosen = chosen[:min(most, len(chosen))]
	}
	if share := p.Spec.Guard.MaxPercent; share > 0 {
		chosen = chosen[:min(len(matching)*share/100, len(chosen))]
	}
	var ids []string
	for _, c := range chosen {
		ids = append(ids, c.ID)
	}
	slices.Sort(ids)
	return ids
}

func (n *node) phaseAny(name string) Status {
	n.t.Helper()
	st, err := n.s.Get(name)
	n.must(err)
	return st
}

// TestIndexMissesNobody: each policy finds its containers through the index, whatever it insists on.
func TestIndexMissesNobody(t *testing.T) {
	for name, sel := range map[string]faultpolicy.Selector{
		"labels":         {MatchLabels: map[string]string{"app": "pg", "tier": "db"}},
		"pod labels":     {PodSelector: &faultpolicy.PodSelector{MatchLabels: map[string]string{"shop": "yes"}}},
		"namespace":      {Namespaces: []string{"other", "default"}},
		"namespace glob": {Namespaces: []string{"def*"}},
		"pod namespace":  {PodNamespaces: []string{"shop"}},
		"image":          {Images: []string{"busybox:*"}},
		"expression":     {MatchExpressions: []faultpolicy.Requirement{{Key: "app", Operator: faultpolicy.Exists}}},
	} {
		n := newNode(t)
		n.apply(pg(func(s *faultpolicy.Spec) { s.Selector = sel }))
		for i := range 3 { // the index knows others too
			n.apply(named(fmt.Sprintf("other%d", i), pg(func(s *faultpolicy.Spec) { s.Selector.MatchLabels = map[string]string{"app": "pg", "n": fmt.Sprint(i)} })))
		}
		c := n.container("a")
		c.Labels["tier"] = "db"
		c.Pod, c.PodNamespace, c.PodLabels = "web", "shop", map[string]string{"shop": "yes"}
		n.s.Observe(c)
		if got := n.has("a"); len(got) != 1 {
			t.Errorf("%s: the container has %v", name, got)
		}
		c.Labels = nil
		c.Namespace, c.Pod, c.PodNamespace, c.PodLabels, c.Image = "default", "", "", nil, "redis"
		n.s.Observe(c)
		left := len(n.has("a")) != 0
		if still := name == "namespace" || name == "namespace glob"; left != still {
			t.Errorf("%s: when it is another the container has %v", name, n.has("a"))
		}
		n.must(n.s.Delete("pg", "root"))
		n.s.Observe(n.container("b"))
		n.wantRules("b")
	}
}

// TestOrderIsASortedList: blocks are split and emptied, and nothing else is to be seen of them.
func TestOrderIsASortedList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &containers{}
		const most = 4 * blockSize
		for i := range most {
			c := &container{}
			c.ID = fmt.Sprint(i)
			r.list, r.hashes = append(r.list, c), append(r.hashes, uint64(i)/2) // two of a rank each
		}
		o := order{seed: rapid.Uint64().Draw(t, "seed")}
		var model []slot
		first := rapid.IntRange(0, most).Draw(t, "first")
		for i := range first {
			model = append(model, slot(i))
		}
		o.fill(r, model)
		sort := func() {
			slices.SortFunc(model, func(a, b slot) int {
				return o.compare(r, selection.Rank(o.seed, r.hashes[a]), selection.Rank(o.seed, r.hashes[b]), a, b)
			})
		}
		toggle := func(n slot) {
			if at := slices.Index(model, n); at >= 0 {
				if got := o.remove(r, n); got != at {
					t.Fatalf("%d was taken from %d, it was at %d", n, got, at)
				}
				model = slices.Delete(model, at, at+1)
				return
			}
			at := o.add(r, n)
			model = append(model, n)
			if sort(); model[at] != n {
				t.Fatalf("%d was put at %d, it belongs at %d", n, at, slices.Index(model, n))
			}
		}
		sort()
		from := rapid.IntRange(0, most-1).Draw(t, "from")
		for i := range rapid.IntRange(0, most-1).Draw(t, "many") { // a run of them fills, or empties, blocks
			toggle(slot((from + i) % most))
		}
		if o.n != len(model) {
			t.Fatalf("%d are in the order, want %d", o.n, len(model))
		}
		for i, n := range model {
			if o.at(i) != n {
				t.Fatalf("at %d there is %d, want %d", i, o.at(i), n)
			}
		}
	})
}
