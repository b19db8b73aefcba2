package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

const dataRule = "io error=EIO op=read path=/data/** ttl=5m"

// labelled is a container whose task is this test's own process.
func labelled(id string, labels map[string]string) Container {
	m := metadata{labels: labels}
	c := Container{Key: Key{"default", id}, Name: id, PID: os.Getpid(), Source: sourceContainerd}
	c.Labels, c.annotated = m.merge()
	c.meta = m
	return c
}

func TestLabelGivesGraftOnce(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule, "log.faultgraft.io": "io error=ENOSPC op=write path=/log/** ttl=5m", "other": "x"})
	b.reg.put(c)
	for range 3 { // create, start, update: one look each
		got := b.settle(t, c.Key)
		if got.State != StateActive {
			t.Fatalf("state %s (%s), want active", got.State, got.Reason)
		}
	}
	grafts := b.node.all()
	if len(grafts) != 2 || b.node.count() != 2 {
		t.Fatalf("%d grafts live, %d made; want 2 of 2: %+v", len(grafts), b.node.count(), grafts)
	}
	for _, g := range grafts {
		if g.Origin != keeper.OriginLabel || g.Target.ID != "a" || g.Target.PID != os.Getpid() || g.Target.StartTime == 0 {
			t.Errorf("graft %+v", g)
		}
	}
}

// A graft that takes long, because there are many files or the machine is busy, is waited for as long as its keeper lets it take: a keeper
// takes back what was made for somebody who has hung up.
func TestSlowGraftsAreWaitedFor(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	for _, rules := range []map[string]string{
		{"wal.faultgraft.io": dataRule},
		{"wal.faultgraft.io": dataRule, "more.faultgraft.io": "io error=ENOSPC op=write path=/data/** ttl=5m"},
		nil,
	} {
		c := labelled("a", rules)
		b.reg.put(c)
		b.settle(t, c.Key)
	}
	for _, method := range []string{"Inject", "Update", "Ungraft"} {
		if got := b.node.given[method]; got < keeper.Patience-time.Minute {
			t.Errorf("%s may take %v, and its keeper gives it %v", method, got, keeper.Patience)
		}
	}
}

func TestContainerWithoutRulesAsksNobody(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"app": "pg"})
	b.reg.put(c)
	if got := b.settle(t, c.Key); got.State != StateNone {
		t.Fatalf("state %s (%s)", got.State, got.Reason)
	}
	if b.node.lists != 0 || b.node.made != 0 {
		t.Errorf("%d lists and %d grafts for a container without rules", b.node.lists, b.node.made)
	}
	if done := b.observe(c, true); done != nil {
		t.Error("NRI has to wait for a container without rules")
	}
}

// A start must not depend on keepers of other containers.
func TestFirstGraftDoesNotList(t *testing.T) {
	b := newBench(t, &node{broken: errTest}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	b.reg.put(c)
	if got := b.settle(t, c.Key); got.State != StateActive {
		t.Fatalf("state %s (%s)", got.State, got.Reason)
	}
	// Later the keeper of this container answers and that of another one does not.
	if got := b.settle(t, c.Key); got.State != StateActive || b.node.count() != 1 {
		t.Fatalf("state %s (%s), %d made", got.State, got.Reason, b.node.count())
	}
}

func TestAgentRestartAdopts(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprint("memory lost: ", lost), func(t *testing.T) {
			dir, n := t.TempDir(), &node{}
			c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
			first := newBench(t, n, dir, nil)
			first.reg.put(c)
			first.settle(t, c.Key)
			if lost {
				if err := os.WriteFile(filepath.Join(dir, memoryFile), []byte(`{"version":1,"ta`), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			second := newBench(t, n, dir, nil)
			second.reg.put(c)
			if got := second.settle(t, c.Key); got.State != StateActive {
				t.Fatalf("state %s (%s)", got.State, got.Reason)
			}
			if n.count() != 1 {
				t.Errorf("%d grafts made, want the first one only", n.count())
			}
		})
	}
}

func TestEndedRuleIsNotGraftedAgain(t *testing.T) {
	for _, how := range []string{"recovered by a person", "ttl ended"} {
		t.Run(how, func(t *testing.T) {
			dir, n := t.TempDir(), &node{}
			c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
			b := newBench(t, n, dir, nil)
			b.reg.put(c)
			b.settle(t, c.Key)
			if how == "ttl ended" {
				n.mu.Lock()
				n.grafts[0].Rules[0].Expires = time.Now().Add(-time.Second)
				n.mu.Unlock()
			} else if _, err := n.Ungraft(t.Context(), "g1"); err != nil {
				t.Fatal(err)
			}
			if got := b.settle(t, c.Key); got.State != StateNone || !strings.Contains(got.Reason, "over for this task") {
				t.Errorf("state %s (%s)", got.State, got.Reason)
			}
			again := newBench(t, n, dir, nil) // nor by the next agent
			again.reg.put(c)
			if got := again.settle(t, c.Key); got.State != StateNone || n.count() != 1 {
				t.Errorf("state %s (%s), %d grafts made", got.State, got.Reason, n.count())
			}
		})
	}
}

func TestRestartedTaskIsGraftedAgain(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	b.reg.put(c)
	b.settle(t, c.Key)
	b.reg.put(Container{Key: c.Key, Name: c.Name, Labels: c.Labels, Source: c.Source}) // stopped
	b.ended(c.Key, c.PID)
	if got := b.wait(t, c.Key); got.State != StatePending || got.PID != 0 {
		t.Fatalf("state %s (%s), pid %d; want pending and none", got.State, got.Reason, got.PID)
	}
	n.mu.Lock()
	n.grafts = nil // its keeper ended with it
	n.mu.Unlock()
	c.PID = os.Getppid()
	b.reg.put(c)
	if got := b.settle(t, c.Key); got.State != StateActive || n.count() != 2 {
		t.Errorf("state %s (%s), %d grafts made, want 2", got.State, got.Reason, n.count())
	}
	// The exit of the old task, heard late, does not end the new one.
	b.ended(c.Key, os.Getpid())
	if got := b.wait(t, c.Key); got.State != StateActive || got.PID != os.Getppid() {
		t.Errorf("after a late exit: state %s (%s), pid %d", got.State, got.Reason, got.PID)
	}
}

func TestChangedLabelsChangeTheGraftInPlace(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	b.reg.put(c)
	b.settle(t, c.Key)
	c = labelled("a", map[string]string{"wal.faultgraft.io": dataRule, "slow.faultgraft.io": "io latency=1ms op=write path=/data/** ttl=5m"})
	b.reg.put(c)
	if got := b.settle(t, c.Key); got.State != StateActive {
		t.Fatalf("state %s (%s)", got.State, got.Reason)
	}
	grafts := n.all()
	if len(grafts) != 1 || grafts[0].ID != "g1" || len(grafts[0].Rules) != 2 || n.made != 1 || n.changed != 1 {
		t.Fatalf("grafts %+v, %d made, %d changed; want g1 with both rules", grafts, n.made, n.changed)
	}
	if got := b.settle(t, c.Key); got.State != StateActive || n.changed != 1 {
		t.Errorf("nothing is new: state %s (%s), %d changed", got.State, got.Reason, n.changed)
	}
	// The rule that stayed is over: one look later the other is alone, and stays where it is.
	n.mu.Lock()
	for i, r := range n.grafts[0].Rules {
		if r.Name == "wal" {
			n.grafts[0].Rules[i].Expires = time.Now().Add(-time.Second)
		}
	}
	n.mu.Unlock()
	if got := b.settle(t, c.Key); got.State != StateActive || n.made != 1 {
		t.Errorf("one rule is over: state %s (%s), %d made", got.State, got.Reason, n.made)
	}
	b.reg.put(labelled("a", nil))
	if got := b.settle(t, c.Key); got.State != StateNone || len(n.all()) != 0 {
		t.Errorf("labels gone: state %s (%s), grafts %+v", got.State, got.Reason, n.all())
	}
}

// A rule that needs a layer elsewhere takes the others with it, and their clocks.
func TestMovedGraftKeepsTheClock(t *testing.T) {
	n := &node{}
	now := time.Now()
	b := newBench(t, n, t.TempDir(), func(r *reconciler) { r.now = func() time.Time { return now } })
	wal := "io error=EIO op=read path=/data/wal/** ttl=5m"
	c := labelled("a", map[string]string{"wal.faultgraft.io": wal})
	b.reg.put(c)
	b.settle(t, c.Key)
	now = now.Add(2 * time.Minute)
	b.reg.put(labelled("a", map[string]string{"wal.faultgraft.io": wal, "slow.faultgraft.io": "io latency=1ms op=write path=/data/** ttl=5m"}))
	b.settle(t, c.Key)
	grafts := n.all()
	if len(grafts) != 1 || grafts[0].Path != "/data" || len(grafts[0].Rules) != 2 {
		t.Fatalf("grafts %+v, want one over /data with both rules", grafts)
	}
	for _, r := range grafts[0].Rules {
		left := time.Until(r.Expires).Round(time.Minute)
		if want := map[string]time.Duration{"wal": 3 * time.Minute, "slow": 5 * time.Minute}[r.Name]; left != want {
			t.Errorf("rule %s has %v left, want %v", r.Name, left, want)
		}
	}
}

func TestEnableFalseBeatsEverything(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	b.reg.put(c)
	got := b.settle(t, c.Key)
	user := policyRule(t, "io error=EIO op=write path=/u/** ttl=5m seed=1")
	if _, err := n.Inject(t.Context(), got.Target(), keeper.Request{Path: "/u", Rules: []policy.Rule{user}, Origin: keeper.OriginUser}); err != nil {
		t.Fatal(err)
	}
	b.reg.put(labelled("a", map[string]string{"wal.faultgraft.io": dataRule, "enable.faultgraft.io": "false"}))
	got = b.settle(t, c.Key)
	if got.State != StateExcluded || len(n.all()) != 0 {
		t.Errorf("state %s (%s), grafts %+v", got.State, got.Reason, n.all())
	}
	if _, err := got.target(); err == nil || !strings.Contains(err.Error(), "enable.faultgraft.io=false") {
		t.Errorf("a person may graft it: %v", err)
	}
}

func TestUserGraftIsLeftAlone(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	b.reg.put(c)
	got := b.settle(t, c.Key)
	user := policyRule(t, "io error=EIO op=write path=/u/** ttl=5m seed=1")
	if _, err := n.Inject(t.Context(), got.Target(), keeper.Request{Path: "/u", Rules: []policy.Rule{user}, Origin: keeper.OriginUser}); err != nil {
		t.Fatal(err)
	}
	b.reg.put(labelled("a", nil))
	b.settle(t, c.Key)
	if g := n.all(); len(g) != 1 || g[0].Origin != keeper.OriginUser {
		t.Errorf("grafts %+v, want the person's one", g)
	}
}

func policyRule(t *testing.T, text string) policy.Rule {
	t.Helper()
	r, err := policy.ParseRule("u", text, policy.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBadLabelIsShownAndTheOthersApply(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	bad := labelled("a", map[string]string{"wal.faultgraft.io": "io error=EIOO op=read path=/data/**"})
	b.reg.put(bad)
	got := b.settle(t, bad.Key)
	if got.State != StateRefused || !strings.Contains(got.Reason, "EIOO") || len(got.Problems) != 1 {
		t.Errorf("state %s (%s), problems %v", got.State, got.Reason, got.Problems)
	}
	mixed := labelled("b", map[string]string{"wal.faultgraft.io": "io error=EIOO op=read path=/data/**", "ok.faultgraft.io": dataRule, "Odd.Faultgraft.io": "x"})
	b.reg.put(mixed)
	got = b.settle(t, mixed.Key)
	if got.State != StateActive || len(got.Problems) != 2 {
		t.Errorf("state %s (%s), problems %v", got.State, got.Reason, got.Problems)
	}
	if g := n.all(); len(g) != 1 || len(g[0].Rules) != 1 || g[0].Rules[0].Name != "ok" {
		t.Errorf("grafts %+v", g)
	}
}

func TestProtectedIsRefused(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	c.PodNamespace, c.Pod = "kube-system", "dns"
	b.reg.put(c)
	got := b.settle(t, c.Key)
	if got.State != StateRefused || !strings.Contains(got.Reason, "kube-system") {
		t.Errorf("state %s (%s)", got.State, got.Reason)
	}
	// The real check: this process shares the host's mount namespace.
	b.check = checkProcess
	host := labelled("b", map[string]string{"wal.faultgraft.io": dataRule})
	b.reg.put(host)
	got = b.settle(t, host.Key)
	if got.State != StateRefused || got.Protected == "" {
		t.Errorf("a process of the host: state %s (%s)", got.State, got.Reason)
	}
	if n.count() != 0 {
		t.Errorf("%d grafts made", n.count())
	}
}

func TestFailedGraftIsTriedAgainAndGivenUp(t *testing.T) {
	n := &node{refuse: errTest}
	b := newBench(t, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	b.reg.put(c)
	b.poke(c.Key)
	until(t, "given up", func() bool { return strings.Contains(b.get(c.Key).Reason, "gave up after 6 attempts") })
	if got := b.get(c.Key); got.State != StateFailed || !strings.Contains(got.Reason, errTest.Error()) {
		t.Errorf("state %s (%s)", got.State, got.Reason)
	}
	if r := b.memory.rules(c.Key, os.Getpid(), b.get(c.Key).StartTime); len(r) != 0 {
		t.Errorf("a rule that was never grafted counts as applied: %+v", r)
	}
	n.mu.Lock()
	n.refuse = nil
	n.mu.Unlock()
	if got := b.settle(t, c.Key); got.State != StateActive { // its next event
		t.Errorf("state %s (%s)", got.State, got.Reason)
	}
}

func TestLookupThatFailsIsRepeated(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	b.reg.put(c)
	b.reg.err = errTest
	b.poke(c.Key)
	until(t, "two failed look-ups", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.records[c.Key].attempts >= 2
	})
	b.reg.mu.Lock()
	b.reg.err = nil
	b.reg.mu.Unlock()
	until(t, "active", func() bool { return b.get(c.Key).State == StateActive })
}

func TestSandboxAndDeletedAreForgotten(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	b.reg.err = errSandbox
	b.settle(t, Key{criNamespace, "pause"})
	b.reg.err = nil
	b.settle(t, Key{"default", "gone"})
	if cs := b.containers(); len(cs) != 0 {
		t.Errorf("known: %+v", cs)
	}
	if len(b.records) != 0 {
		t.Errorf("records are left: %v", b.records)
	}
}

func TestSlowContainerDelaysNoOther(t *testing.T) {
	release := make(chan struct{})
	n := &node{onGraft: func(t keeper.Target, _ keeper.Request) {
		if strings.HasPrefix(t.ID, "slow") {
			<-release
		}
	}}
	b := newBench(t, n, t.TempDir(), nil)
	defer close(release)
	for i := range workers + 4 { // more than there are slots
		c := labelled(fmt.Sprint("slow", i), map[string]string{"wal.faultgraft.io": fmt.Sprintf("io error=EIO op=read path=/data%d/** ttl=5m", i)})
		b.reg.put(c)
		b.poke(c.Key)
	}
	// A start that NRI waits for takes no slot.
	c := labelled("quick", map[string]string{"wal.faultgraft.io": dataRule})
	select {
	case <-b.observe(c, true):
	case <-time.After(30 * time.Second):
		t.Fatal("a container's start waits for other containers")
	}
	if got := b.get(c.Key); got.State != StateActive {
		t.Errorf("state %s (%s)", got.State, got.Reason)
	}
}

// What NRI says while containerd is being asked is newer than the answer.
func TestSlowLookupDoesNotUndoNRI(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	c.Key, c.Source = Key{criNamespace, "a"}, sourceNRI
	old := c
	old.PID, old.Source = 0, sourceContainerd
	asked, answer := make(chan struct{}), make(chan struct{})
	b.lookup = lookupFunc(func(Key) (Container, error) {
		close(asked)
		<-answer
		return old, nil
	})
	b.poke(c.Key)
	<-asked
	done := b.observe(c, true)
	close(answer)
	wait(t, "the container is not reconciled", done)
	if got := b.get(c.Key); got.State != StateActive || got.PID != os.Getpid() || got.Source != sourceNRI {
		t.Errorf("state %s (%s), pid %d, source %s", got.State, got.Reason, got.PID, got.Source)
	}
}

func TestOtherNamespacesAreLeftAlone(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	b.settings.Store(settingsOf(Options{ContainerdNamespaces: []string{"lab"}}.withDefaults()))
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	b.reg.put(c)
	b.settle(t, c.Key)
	cri := c
	cri.Key, cri.Source = Key{criNamespace, "b"}, sourceNRI
	if done := b.observe(cri, true); done != nil {
		wait(t, "not reconciled", done)
	}
	if len(b.containers()) != 0 || b.node.count() != 0 {
		t.Errorf("known: %+v, %d grafts", b.containers(), b.node.count())
	}
}
