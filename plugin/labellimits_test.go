package plugin

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy/limits"
)

// P10: what a label may not ask for is refused, with the limit and the line that lifts it; the rest applies.
func TestLabelsCannotExceedTheConfiguration(t *testing.T) {
	in := limits.Scope{Namespaces: []limits.Namespaces{"default"}}
	with := func(change func(*limits.Scope)) limits.Scope {
		s := in
		change(&s)
		return s
	}
	const slab = "kernel hook=slab error=ENOMEM times=1 ttl=5m"
	for name, c := range map[string]struct {
		limits limits.Limits
		rule   string
		want   string // empty: it applies
	}{
		"default":        {limits.Limits{}, dataRule, "labels.namespaces"},
		"opted in":       {limits.Limits{Labels: in}, dataRule, ""},
		"other":          {limits.Limits{Labels: limits.Scope{Namespaces: []limits.Namespaces{"lab-*"}}}, dataRule, `["lab-*", default]`},
		"action":         {limits.Limits{Labels: with(func(s *limits.Scope) { s.Actions = []limits.Action{"latency"} })}, dataRule, "labels.actions"},
		"kernel":         {limits.Limits{Labels: in}, slab, "labels.hooks"},
		"kernel allowed": {limits.Limits{Labels: with(func(s *limits.Scope) { s.Hooks = []limits.Hooks{"slab"} })}, slab, ""},
		"ttl":            {limits.Limits{Labels: in}, "io error=EIO op=read path=/data/** ttl=2h", "labels.maxTTL"},
		"ttl of node":    {limits.Limits{Labels: in, Node: limits.Node{MaxTTL: limits.Duration(time.Minute)}}, dataRule, "limits.maxTTL"},
		"protected":      {limits.Limits{Labels: in, Protected: limits.Protected{Names: []limits.Glob{"a*"}}}, dataRule, "protected.names"},
		"protected image": {limits.Limits{Labels: in, Protected: limits.Protected{Images: []limits.Glob{"lab.local/*"}}}, dataRule,
			"protected.images"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, &node{}, t.TempDir(), nil)
			b.settings.Store(settingsOf(Options{Limits: &c.limits}.withDefaults()))
			ctr := labelled("a", map[string]string{"wal.faultgraft.io": c.rule})
			ctr.Image = "lab.local/busybox:1"
			ctr.PID = startIdle(t, 0)
			b.reg.put(ctr)
			got := b.settle(t, ctr.Key)
			if c.want == "" {
				if got.State != StateActive || len(got.Problems) > 0 {
					t.Errorf("%s: %s %v", got.State, got.Reason, got.Problems)
				}
				return
			}
			said := got.Reason + strings.Join(got.Problems, "; ")
			if got.State != StateRefused || !strings.Contains(said, c.want) || !strings.Contains(said, limits.DefaultFile) {
				t.Errorf("%s: %s", got.State, said)
			}
			if n := len(b.node.all()); n > 0 {
				t.Errorf("%d grafts", n)
			}
		})
	}
}

// One rule that is refused does not take the others with it.
func TestRefusedRuleLeavesTheOthers(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	l := limits.Limits{Labels: limits.Scope{Namespaces: []limits.Namespaces{"default"}, Actions: []limits.Action{"error"}}}
	b.settings.Store(settingsOf(Options{Limits: &l}.withDefaults()))
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule, "slow.faultgraft.io": "io latency=1ms op=read path=/data/** ttl=5m"})
	c.PID = startIdle(t, 0)
	b.reg.put(c)
	got := b.settle(t, c.Key)
	if got.State != StateActive || len(got.Problems) != 1 || !strings.Contains(got.Problems[0], "label slow.faultgraft.io") {
		t.Errorf("%s, %v", got.State, got.Problems)
	}
	if all := b.node.all(); len(all) != 1 || len(all[0].Rules) != 1 || all[0].Rules[0].Name != "wal" {
		t.Errorf("grafts: %+v", all)
	}
}

// The labels of an image ask for nothing; its refusal of faults counts, and so does what the user gave.
func TestImageCannotAsk(t *testing.T) {
	own := map[string]string{"wal.faultgraft.io": dataRule, "enable.faultgraft.io": "true"}
	var fails error
	b := newBench(t, &node{}, t.TempDir(), func(r *reconciler) {
		r.imageLabels = func(_ context.Context, namespace, image string) (map[string]string, error) {
			if namespace != "default" || image != "evil:1" {
				t.Errorf("asked for %s/%s", namespace, image)
			}
			return own, fails
		}
	})
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	c.Image, c.PID = "evil:1", startIdle(t, 0)
	b.reg.put(c)
	got := b.settle(t, c.Key)
	if got.State != StateRefused || !strings.Contains(got.Reason, "wal.faultgraft.io: comes from the image evil:1") {
		t.Errorf("%s: %s", got.State, got.Reason)
	}
	fails = errNoImage
	if got = b.settle(t, c.Key); got.State != StateRefused || !strings.Contains(got.Reason, "does not have the image") {
		t.Errorf("image gone: %s: %s", got.State, got.Reason)
	}
	fails = nil
	other := labelled("b", map[string]string{"wal.faultgraft.io": "io error=ENOSPC op=write path=/data/** ttl=5m"})
	other.Image, other.PID = "evil:1", startIdle(t, 0)
	b.reg.put(other)
	if got = b.settle(t, other.Key); got.State != StateActive {
		t.Errorf("the user's value over the image's: %s: %s", got.State, got.Reason)
	}
	annotated := labelled("c", map[string]string{"wal.faultgraft.io": dataRule})
	annotated.Image, annotated.PID, annotated.annotated = "evil:1", startIdle(t, 0), map[string]bool{"wal.faultgraft.io": true}
	b.reg.put(annotated)
	if got = b.settle(t, annotated.Key); got.State != StateActive {
		t.Errorf("an annotation of the image's value: %s: %s", got.State, got.Reason)
	}
	fails = errTest
	late := labelled("d", map[string]string{"wal.faultgraft.io": dataRule})
	late.Image, late.PID = "evil:1", startIdle(t, 0)
	b.reg.put(late)
	if got = b.settle(t, late.Key); len(b.node.all()) != 2 {
		t.Errorf("with an image that cannot be looked at: %s: %+v", got.State, b.node.all())
	}
}

// The file is read anew when asked: what was refused applies, and what is refused now is taken off.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("labels: {maxTTL: 1m}\n")
	reload := make(chan os.Signal, 1)
	a := startAgent(t, Options{
		Grafter: &node{}, StateDir: filepath.Join(dir, "state"), ContainerdAddress: filepath.Join(dir, "no.sock"), DisableNRI: true,
		ConfigFile: file, Reload: reload,
	})
	inForce := func(want func(Config) bool) func() bool {
		return func() bool {
			c, err := a.client.Config(t.Context())
			return err == nil && want(c)
		}
	}
	until(t, "the file is in force", inForce(func(c Config) bool {
		return c.Labels.MaxTTL == limits.Duration(time.Minute) && len(c.Labels.Namespaces) == 0
	}))
	write("labels: {namespaces: [default], maxTTL: 2m}\n")
	reload <- syscall.SIGHUP
	until(t, "the changed file is in force", inForce(func(c Config) bool {
		return c.Labels.MaxTTL == limits.Duration(2*time.Minute) && len(c.Labels.Namespaces) == 1
	}))
	// A wrong file changes nothing.
	write("labels: {namespaces: [other], maxTTL: soon}\n")
	reload <- syscall.SIGHUP
	until(t, "the reload was refused", func() bool {
		m, err := a.client.Metrics(t.Context())
		return err == nil && strings.Contains(m, `faultgraft_problems_total{kind="configuration"} 1`)
	})
	if c, err := a.client.Config(t.Context()); err != nil || len(c.Labels.Namespaces) != 1 || c.Labels.Namespaces[0] != "default" {
		t.Errorf("after a wrong file: %+v, %v", c.Labels, err)
	}
	write("labels: {maxTTL: 3m}\n")
	reload <- syscall.SIGHUP
	until(t, "the third file is in force", inForce(func(c Config) bool { return c.Labels.MaxTTL == limits.Duration(3*time.Minute) }))
}

// After a reload every container is brought to what it may have now.
func TestReloadReconciles(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	c.PID = startIdle(t, 0)
	b.reg.put(c)
	b.settings.Store(settingsOf(Options{}.withDefaults()))
	if got := b.settle(t, c.Key); got.State != StateRefused {
		t.Fatalf("%s: %s", got.State, got.Reason)
	}
	b.settings.Store(settingsOf(Options{Limits: optedIn()}.withDefaults()))
	b.lookAtAll()
	until(t, "grafted after the opt-in", func() bool { return b.get(c.Key).State == StateActive && len(b.node.all()) == 1 })
	b.settings.Store(settingsOf(Options{}.withDefaults()))
	b.lookAtAll()
	until(t, "taken off after the opt-out", func() bool { return b.get(c.Key).State == StateRefused && len(b.node.all()) == 0 })
}

// Every error of a file has its place.
func TestConfigErrors(t *testing.T) {
	for text, want := range map[string][]string{
		"stateDirr: /x":                               {"test.yaml:1:1: unknown field \"stateDirr\"", "did you mean stateDir?"},
		"log: {levell: debug}":                        {"test.yaml:1:7: log: unknown field \"levell\""},
		"log: {level: loud}":                          {"test.yaml:1:14: log.level", "debug, info, warn or error"},
		"stateDir: run/x":                             {"test.yaml:1:11: stateDir", "not an absolute path"},
		"containerdAddress: c.sock":                   {"not an absolute path"},
		"nri: {startBudget: 5}":                       {"test.yaml:1:20: nri.startBudget", "with its unit"},
		"nri: {startBudget: -1s}":                     {"above zero"},
		"limits: {defaultTTL: 2h, maxTTL: 1h}":        {"test.yaml:1:22: limits.defaultTTL", "longer than the longest one allowed"},
		"limits: {maxTTL: 1h}\nlabels: {maxTTL: 2h}":  {"test.yaml:2:18: labels.maxTTL"},
		"limits: {maxPercent: 101}":                   {"test.yaml:1:22: limits.maxPercent", "0 to 100"},
		"limits: {maxContainers: -1}":                 {"test.yaml:1:25: limits.maxContainers"},
		"labels: {namespaces: [default, k8s.io]}":     {"test.yaml:1:32: labels.namespaces[1]", "k8s.io/*"},
		"labels: {namespaces: ['']}":                  {"labels.namespaces[0]", "empty"},
		"labels: {actions: [errr]}":                   {"test.yaml:1:20: labels.actions[0]", "did you mean error?"},
		"labels: {hooks: [\"slap\"]}":                 {"did you mean slab?"},
		"protected: {images: [\"a[\"]}":               {"test.yaml:1:23: protected.images[0]", "not a pattern"},
		"containerdNamespaces: ['']":                  {"empty namespace"},
		"containerdNamespaces: default":               {"test.yaml:1:23"},
		"stateDir: /a\nstateDir: /b":                  {"test.yaml:2:1"},
		"stateDir: /a\n---\nstateDir: /b":             {"test.yaml:3:1", "second document"},
		"stateDir: [":                                 {"test.yaml"},
		"labels: {maxTTL: x}\npolicies: {actions: y}": {"test.yaml:1:18: labels.maxTTL", "test.yaml:2:21: policies.actions"}, // all of them
	} {
		_, err := ParseConfig("test.yaml", text)
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%q: error %v, want %q in it", text, err, w)
			}
		}
	}
}

// P10: no more containers have faults than the node allows; one that waits gets its turn.
func TestPlaces(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	l := optedIn()
	l.Node.MaxContainers = 1
	b.settings.Store(settingsOf(Options{Limits: l}.withDefaults()))
	var both []Container
	for _, id := range []string{"a", "b"} {
		c := labelled(id, map[string]string{"wal.faultgraft.io": dataRule})
		c.PID = startIdle(t, 0)
		b.reg.put(c)
		both = append(both, b.settle(t, c.Key))
	}
	if both[0].State != StateActive || both[1].State != StateRefused || !strings.Contains(both[1].Reason, "limits.maxContainers") {
		t.Fatalf("%s: %s; %s: %s", both[0].State, both[0].Reason, both[1].State, both[1].Reason)
	}
	if got := b.settle(t, both[0].Key); got.State != StateActive {
		t.Errorf("the one that has faults, looked at again: %s: %s", got.State, got.Reason)
	}
	b.remove(both[0].Key)
	until(t, "the other one has its turn", func() bool { return b.get(both[1].Key).State == StateActive })
}

// TestRuntimeSectionIsNotHandedOver: the runc wrapper reads the node's own file only,
// so what containerd hands to its plugin must not seem to say what it does.
func TestRuntimeSectionIsNotHandedOver(t *testing.T) {
	p := &nriPlugin{
		metrics: newMetrics("test"), log: slog.New(slog.DiscardHandler),
		configure: func(Config) error { t.Error("it was configured"); return nil },
	}
	_, err := p.Configure(t.Context(), "runtime: {withoutAgent: refuse}", "containerd", "2.4")
	if err == nil || !strings.Contains(err.Error(), DefaultConfigFile) {
		t.Errorf("Configure: %v", err)
	}
}
