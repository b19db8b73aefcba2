package plugin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"sigs.k8s.io/yaml"

	"github.com/faultgraft/faultgraft/policy/limits"
)

func TestParseConfig(t *testing.T) {
	got, err := ParseConfig("test.yaml", `# the agent
labels:
  namespaces: [default, "lab-*", k8s.io/*]
  actions: [error, latency]
  hooks: [slab, "syscall:*"]
  maxTTL: 1h30m
policies: {namespaces: [], hooks: ["*"]}
limits: {maxTTL: 2h, defaultTTL: 1m, maxContainers: 3, maxPercent: 0}
protected: {namespaces: [kube-system, infra], labels: {tier: db}, names: [pg], images: ["postgres:*"]}
stateDir: /run/fg
containerdAddress: /run/c.sock
containerdNamespaces: [default, k8s.io]
log: {level: debug, file: /var/log/fg.log}
nri: {startBudget: 900ms}
`)
	var none limits.Percent
	want := Config{
		Labels: limits.Scope{
			Namespaces: []limits.Namespaces{"default", "lab-*", "k8s.io/*"}, Actions: []limits.Action{"error", "latency"},
			Hooks: []limits.Hooks{"slab", "syscall:*"}, MaxTTL: limits.Duration(90 * time.Minute),
		},
		Policies: limits.Scope{Namespaces: []limits.Namespaces{}, Hooks: []limits.Hooks{"*"}},
		Limits:   limits.Node{MaxTTL: limits.Duration(2 * time.Hour), DefaultTTL: limits.Duration(time.Minute), MaxContainers: 3, MaxPercent: &none},
		Protected: limits.Protected{
			Namespaces: []limits.Glob{"kube-system", "infra"}, Labels: map[string]limits.Glob{"tier": "db"}, Names: []limits.Glob{"pg"}, Images: []limits.Glob{"postgres:*"},
		},
		StateDir: "/run/fg", ContainerdAddress: "/run/c.sock", ContainerdNamespaces: []string{"default", "k8s.io"},
		Log: LogConfig{Level: "debug", File: "/var/log/fg.log"}, NRI: NRIConfig{StartBudget: limits.Duration(900 * time.Millisecond)},
	}
	if err != nil || !cmp.Equal(got, want, noFile) {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got, noFile))
	}
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "# c\n---\nstateDir: /x\n", "{}"} {
		if _, err := ParseConfig("test.yaml", text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

var noFile = cmpopts.IgnoreFields(Config{}, "File")

// TestUnder: what containerd hands over takes the place of the file's sections that it has.
func TestUnder(t *testing.T) {
	file, err := ParseConfig("file.yaml", "labels: {namespaces: [default], hooks: [slab]}\nprotected: {names: [pg]}\nstateDir: /a\nlog: {level: debug}\nlimits: {maxTTL: 2h}")
	if err != nil {
		t.Fatal(err)
	}
	top, err := ParseConfig("nri", "labels: {namespaces: []}\nlog: {file: /x.log}\nlimits: {maxContainers: 1}\ncontainerdNamespaces: [a]")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Labels: limits.Scope{Namespaces: []limits.Namespaces{}}, Protected: limits.Protected{Names: []limits.Glob{"pg"}}, Limits: limits.Node{MaxContainers: 1},
		StateDir: "/a", ContainerdNamespaces: []string{"a"}, Log: LogConfig{Level: "debug", File: "/x.log"},
	}
	if got := file.under(top); !cmp.Equal(got, want, noFile) {
		t.Error(cmp.Diff(want, got, noFile))
	}
	if got := file.under(Config{}); !cmp.Equal(got, file, noFile) {
		t.Error(cmp.Diff(file, got, noFile))
	}
}

func TestOptionsWinOverConfiguration(t *testing.T) {
	c, err := ParseConfig("test.yaml", "stateDir: /from/config\ncontainerdAddress: /from/config.sock\nnri: {startBudget: 1s}")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{StateDir: "/from/options"}.merge(c).withDefaults()
	if o.StateDir != "/from/options" || o.ContainerdAddress != "/from/config.sock" || o.StartBudget != time.Second || o.NRISocket != DefaultNRISocket {
		t.Errorf("%+v", o)
	}
}

// TestEffective: all that can be said is written out, and it is a configuration that means the same.
func TestEffective(t *testing.T) {
	e := Config{}.Effective()
	b, err := yaml.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseConfig("test.yaml", string(b))
	if err != nil || !cmp.Equal(again.Effective(), e, noFile) {
		t.Errorf("%v\n%s\n%s", err, b, cmp.Diff(e, again.Effective(), noFile))
	}
	for _, want := range []string{"labels:\n", "  namespaces: []", "  hooks: []", "maxTTL: 1h0m0s", "- kube-system", "maxContainers: 0", "maxPercent: 100", "startBudget: 1.5s", "level: info", "withoutAgent: start", "stateDir: /run/faultgraft"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
}

// The commented example of contrib is a configuration, and it says what the defaults are where it says so.
func TestExampleConfig(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "contrib", "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseConfig("config.yaml", string(text))
	if err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(c.Effective(), Config{}.Effective(), noFile) {
		t.Errorf("as it is the example must change nothing: %s", cmp.Diff(Config{}.Effective(), c.Effective(), noFile))
	}
	// With the # of its fields taken away it says the defaults, or examples that are right.
	var lines []string
	for l := range strings.Lines(string(text)) {
		lines = append(lines, strings.TrimPrefix(l, "#"))
	}
	var whole []string
	for _, l := range lines { // words begin with a blank
		words := strings.HasPrefix(l, " ") && !strings.HasPrefix(l, "  ")
		if !words && !strings.HasPrefix(l, "# ") {
			whole = append(whole, l)
		}
	}
	c, err = ParseConfig("config.yaml", strings.Join(whole, ""))
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(whole, ""))
	}
	if c.Labels.Namespaces == nil || c.Protected.Images == nil || c.Limits.MaxPercent == nil || c.Log.Level == "" || c.NRI.StartBudget == 0 {
		t.Errorf("fields are missing in the example: %+v", c)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{
		"", "stateDir: /x", "log: {level: info}", "nri: {startBudget: 1s}", "---\n...\n", "limits: {maxTTL: 1h, maxPercent: 3}", "a: &a [*a]", "\x00",
		"containerdNamespaces: [a, b]", "labels: {namespaces: [], hooks: [slab]}", "protected: {labels: {a: b}}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseConfig("fuzz.yaml", text)
		if err != nil {
			return
		}
		// What is accepted says the same when it is written out again.
		b, err := yaml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseConfig("fuzz.yaml", string(b))
		if err != nil {
			t.Fatalf("%q gave %s, which is refused: %v", text, b, err)
		}
		if !cmp.Equal(c, again, noFile) {
			t.Errorf("%q: %s", text, cmp.Diff(c, again, noFile))
		}
	})
}
