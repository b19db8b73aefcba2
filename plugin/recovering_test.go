package plugin

import (
	"context"
	"testing"
	"time"
)

// What a person recovers while there is no agent is over, also where the last agent
// was killed before it had remembered that it made it. What was not there comes.
func TestRecoveredWithoutAgent(t *testing.T) {
	for _, c := range []struct {
		name    string
		recover func(m *memory, n *node) error
		grafts  int
	}{
		{"nobody recovers", func(*memory, *node) error { return nil }, 1},
		{"the layer", func(m *memory, n *node) error { return m.settle(n.all(), false) }, 0},
		{"another layer", func(m *memory, n *node) error { return m.settle(nil, true) }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			first := newBench(t, &node{}, dir, nil)
			target := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
			first.reg.put(target)
			if got := first.settle(t, target.Key); got.State != StateActive {
				t.Fatalf("state %s (%s), want active", got.State, got.Reason)
			}
			m, warning, err := loadMemory(dir, time.Now())
			if err != nil || warning != nil {
				t.Fatal(err, warning)
			}
			for _, task := range m.tasks { // as the agent would have left it, killed a moment earlier
				task.Rules[0].Done, task.Rules[0].Graft = false, ""
			}
			if err := m.save(); err != nil {
				t.Fatal(err)
			}
			if !m.unsettled() {
				t.Error("nothing is said to be open")
			}
			if err := c.recover(m, first.node); err != nil {
				t.Fatal(err)
			}
			for _, g := range first.node.all() {
				if _, err := first.node.Ungraft(context.Background(), g.ID); err != nil {
					t.Fatal(err)
				}
			}
			second := newBench(t, first.node, dir, nil)
			second.reg.put(target)
			got := second.settle(t, target.Key)
			if now := first.node.all(); len(now) != c.grafts {
				t.Errorf("the next agent has %+v; the container is %s (%s)", now, got.State, got.Reason)
			}
		})
	}
}

// Kernel faults of labels end with the agent, and are in force again with the next one, unless a person has recovered all in between.
func TestKernelFaultRecoveredWithoutAgent(t *testing.T) {
	for _, all := range []bool{false, true} {
		k, dir := &fakeKernel{}, t.TempDir()
		c := labelled("a", map[string]string{"oom.faultgraft.io": slabRule})
		first := kernelBench(t, k, &node{}, dir, nil)
		first.reg.put(c)
		first.settle(t, c.Key)
		wantLive(t, k, at("oom"))
		if err := first.faults.close(); err != nil {
			t.Fatal(err)
		}
		m, warning, err := loadMemory(dir, time.Now())
		if err != nil || warning != nil {
			t.Fatal(err, warning)
		}
		if err := m.settle(nil, all); err != nil {
			t.Fatal(err)
		}
		second := kernelBench(t, k, &node{}, dir, nil)
		second.reg.put(c)
		second.settle(t, c.Key)
		if all {
			wantLive(t, k)
		} else {
			wantLive(t, k, at("oom"))
		}
		if m.unsettled() == all {
			t.Errorf("all %v: unsettled %v", all, m.unsettled())
		}
	}
}
