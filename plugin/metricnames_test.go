package plugin

import (
	"context"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faultgraft/faultgraft/plugin/policies"
)

// descriptions gives the metrics of an agent with their labels, from what the collectors describe.
func descriptions(t *testing.T) map[string][]string {
	t.Helper()
	b := newBench(t, &node{}, t.TempDir(), nil)
	if b.policies == nil {
		if err := b.openPolicies(policies.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	out := map[string][]string{}
	// Desc tells its name and labels in words only (prometheus.Desc.String).
	form := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ch := make(chan *prometheus.Desc)
	go func() { b.metrics.registry.Describe(ch); close(ch) }()
	for {
		select {
		case d, ok := <-ch:
			if !ok {
				if len(out) < 20 {
					t.Fatalf("only %d metrics were found", len(out))
				}
				return out
			}
			m := form.FindStringSubmatch(d.String())
			if m == nil {
				t.Fatalf("a description of another form: %s", d)
			}
			if strings.HasPrefix(m[1], "faultgraft_") {
				out[m[1]] = slices.DeleteFunc(strings.Split(m[2], ","), func(l string) bool { return l == "" })
			}
		case <-ctx.Done():
			t.Fatal("the registry does not describe itself")
		}
	}
}

// docs/observability.md has every metric with its labels, and no other.
func TestMetricsPage(t *testing.T) {
	page, err := os.ReadFile("../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	have := descriptions(t)
	told := map[string]bool{}
	var before string
	for _, row := range regexp.MustCompile("(?m)^\\| `(faultgraft_\\w+)` \\| ([^|]*)\\|").FindAllStringSubmatch(string(page), -1) {
		name, labels := row[1], strings.TrimSpace(row[2])
		if labels == "the same" {
			labels = before
		}
		before = labels
		told[name] = true
		want := slices.Clone(have[name])
		got := strings.FieldsFunc(labels, func(r rune) bool { return r == '`' || r == ',' || r == ' ' })
		slices.Sort(want)
		slices.Sort(got)
		if _, ok := have[name]; !ok {
			t.Errorf("%s is on the page, and no metric", name)
		} else if !slices.Equal(want, got) {
			t.Errorf("%s has the labels %q on the page, and %q in fact", name, got, want)
		}
	}
	for name := range have {
		if !told[name] {
			t.Errorf("%s is not on the page", name)
		}
	}
}

// The dashboard asks for metrics that there are, by labels that they have.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("../contrib/grafana/faultgraft.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
		Templating struct {
			List []struct{ Query any }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	have := descriptions(t)
	metric := regexp.MustCompile(`faultgraft_\w+`)
	selector := regexp.MustCompile(`(faultgraft_\w+)\{([^}]*)\}`)
	grouping := regexp.MustCompile(`by \(([^)]*)\)`)
	legend := regexp.MustCompile(`\{\{(\w+)\}\}`)
	base := func(name string) string {
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if cut, ok := strings.CutSuffix(name, suffix); ok && have[cut] != nil {
				return cut
			}
		}
		return name
	}
	if len(d.Panels) == 0 {
		t.Fatal("no panels")
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			names := metric.FindAllString(target.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s: %s asks for nothing of ours", p.Title, target.Expr)
			}
			labels := []string{"instance", "le"} // Prometheus adds these
			for _, n := range names {
				if _, ok := have[base(n)]; !ok {
					t.Errorf("%s: no metric %s", p.Title, n)
				}
				labels = append(labels, have[base(n)]...)
			}
			for _, s := range selector.FindAllStringSubmatch(target.Expr, -1) {
				for _, match := range strings.Split(s[2], ",") {
					l := strings.TrimRight(strings.SplitN(match, "=", 2)[0], "!~")
					if !slices.Contains(append([]string{"instance"}, have[base(s[1])]...), l) {
						t.Errorf("%s: %s has no label %q", p.Title, s[1], l)
					}
				}
			}
			for _, by := range grouping.FindAllStringSubmatch(target.Expr, -1) {
				for _, l := range strings.Split(by[1], ",") {
					if l = strings.TrimSpace(l); !slices.Contains(labels, l) {
						t.Errorf("%s: by %q, which %q do not have", p.Title, l, names)
					}
				}
			}
			for _, l := range legend.FindAllStringSubmatch(target.LegendFormat, -1) {
				if !slices.Contains(labels, l[1]) {
					t.Errorf("%s: the legend shows %q", p.Title, l[1])
				}
			}
		}
	}
	for _, n := range metric.FindAllString(string(b), -1) {
		if _, ok := have[base(n)]; !ok {
			t.Errorf("no metric %s", n)
		}
	}
}
