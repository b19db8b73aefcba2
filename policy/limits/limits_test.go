package limits

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

func rule(t *testing.T, l *Limits, who Asker, text string) *policy.Rule {
	t.Helper()
	d := l.Defaults(who)
	d.MaxTTL = policy.DefaultMaxTTL // the limit is to be found by Allows, too
	r, err := policy.ParseRule("r", text, d)
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

// wantRefusal checks that an error names the limit, the file and a line that lifts it.
func wantRefusal(t *testing.T, err error, limit string, words ...string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Limit != limit {
		t.Errorf("got %v, want a refusal by %s", err, limit)
		return
	}
	for _, w := range append(words, limit, DefaultFile) {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q lacks %q", err, w)
		}
	}
}

var (
	lab = &Container{Namespace: "default", ID: "c1", Name: "pg", Image: "docker.io/library/postgres:16", Labels: map[string]string{"tier": "db"}}
	pod = &Container{Namespace: criNamespace, ID: "c2", Name: "main", Pod: "web-0", PodNamespace: "shop", Image: "registry.example/team/web@sha256:" + strings.Repeat("a", 64)}
)

const ioRule = "io error=EIO op=read path=/data/** ttl=5m"

// P10: without a configuration labels may ask for nothing, policies for all but what is protected.
func TestDefaultsAreSafe(t *testing.T) {
	var l Limits
	for _, c := range []*Container{lab, pod} {
		wantRefusal(t, l.Allows(Labels, c, rule(t, &l, Labels, ioRule)), "labels.namespaces", "not opted in")
		if err := l.Allows(Policies, c, rule(t, &l, Policies, ioRule)); err != nil {
			t.Error(err)
		}
		if err := l.Allows(Policies, c, rule(t, &l, Policies, "kernel hook=slab error=ENOMEM ttl=24h")); err != nil {
			t.Error(err)
		}
		if err := l.Protects(c); err != nil {
			t.Error(err)
		}
	}
	if err := l.Protects(&Container{Namespace: criNamespace, PodNamespace: "kube-system"}); err == nil || !strings.Contains(err.Error(), "kube-system") {
		t.Errorf("kube-system: %v", err)
	}
	l.Labels.Namespaces = []Namespaces{"default"}
	if err := l.Allows(Labels, lab, rule(t, &l, Labels, ioRule)); err != nil {
		t.Error(err)
	}
	wantRefusal(t, l.Allows(Labels, lab, rule(t, &l, Labels, "kernel hook=syscall:mount error=ENOMEM ttl=5m")), "labels.hooks", "`labels: {hooks: [\"syscall:mount\"]}`")
	wantRefusal(t, l.Allows(Labels, lab, rule(t, &l, Labels, "io error=EIO op=read path=/d ttl=61m")), "labels.maxTTL", "1h0m0s", "1h1m0s")
}

func TestNamespaces(t *testing.T) {
	for list, want := range map[string][2]bool{ // of lab, of pod
		"default": {true, false}, "shop": {false, true}, "*": {true, true}, "def*": {true, false}, "k8s.io/*": {false, true},
		"k8s.io/shop": {false, true}, "k8s.*": {false, false}, "defaul": {false, false}, "default/": {false, false}, "*/*": {false, true},
	} {
		l := Limits{Labels: Scope{Namespaces: []Namespaces{"never", Namespaces(list)}}}
		for i, c := range []*Container{lab, pod} {
			if got := l.AllowsContainer(Labels, c) == nil; got != want[i] {
				t.Errorf("%s, %s: %v", list, c.Name, got)
			}
		}
	}
	// The refusal's line keeps what is opted in.
	l := Limits{Labels: Scope{Namespaces: []Namespaces{"lab-*"}}, File: "/x.yaml"}
	if err := l.AllowsContainer(Labels, pod); !strings.Contains(err.Error(), "Kubernetes namespace shop") || !strings.Contains(err.Error(), "/x.yaml needs `labels: {namespaces: [\"lab-*\", shop]}`") {
		t.Error(err)
	}
	// Empty lists are not the defaults.
	l = Limits{Policies: Scope{Namespaces: []Namespaces{}}}
	wantRefusal(t, l.AllowsContainer(Policies, lab), "policies.namespaces")
}

func TestActionsAndHooks(t *testing.T) {
	l := Limits{Labels: Scope{Namespaces: []Namespaces{"*"}, Actions: []Action{"latency", "nospace"}, Hooks: []Hooks{"lsm", "syscall:m*", "slab"}, MaxTTL: Duration(24 * time.Hour)}}
	for text, limit := range map[string]string{
		"io latency=1ms op=read path=/d":                  "",
		"io nospace=0 path=/d":                            "",
		"io quota=0 path=/d":                              "labels.actions",
		"io latency=1ms error=EIO op=read path=/d":        "labels.actions",
		"io throttle=1MiB/s op=read path=/d":              "labels.actions",
		"io hang op=read path=/d":                         "labels.actions",
		"io torn=prefix(4KiB) error=EIO op=write path=/d": "labels.actions",
		"io lost op=write path=/d":                        "labels.actions",
		"io short=50% op=write path=/d":                   "labels.actions",
		"io corrupt=bitflip(1,16) op=write path=/d":       "labels.actions",
		"io attr=size:5 path=/d":                          "labels.actions",
		"kernel hook=slab error=ENOMEM":                   "",
		"kernel hook=lsm:file_open error=EPERM":           "",
		"kernel hook=syscall:mount error=EPERM":           "",
		"kernel hook=syscall:umount2 error=EPERM":         "labels.hooks",
		"kernel hook=page error=ENOMEM times=1":           "labels.hooks",
		"kernel hook=function:open_ctree error=ENOMEM":    "labels.hooks",
		"kernel hook=syscall:mount(flags & 1) error=EIO ": "",
	} {
		r, err := policy.ParseRule("r", text, policy.Defaults{})
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		err = l.Allows(Labels, lab, &r)
		if limit == "" && err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if limit != "" {
			wantRefusal(t, err, limit)
		}
	}
	// Every action of the language can be named.
	for _, a := range actions {
		var got Action
		if err := got.UnmarshalText([]byte(a)); err != nil {
			t.Error(err)
		}
	}
}

func TestTTL(t *testing.T) {
	hour := Duration(time.Hour)
	for _, c := range []struct {
		name   string
		limits Limits
		who    Asker
		most   time.Duration
		field  string
		ttl    time.Duration // of a rule that gives none
	}{
		{"default", Limits{}, Labels, time.Hour, "labels.maxTTL", 10 * time.Minute},
		{"default", Limits{}, Policies, 24 * time.Hour, "limits.maxTTL", 10 * time.Minute},
		{"node narrows both", Limits{Node: Node{MaxTTL: Duration(5 * time.Minute)}}, Labels, 5 * time.Minute, "limits.maxTTL", 5 * time.Minute},
		{"node narrows both", Limits{Node: Node{MaxTTL: Duration(5 * time.Minute)}}, Policies, 5 * time.Minute, "limits.maxTTL", 5 * time.Minute},
		{"labels", Limits{Labels: Scope{MaxTTL: Duration(time.Minute)}}, Labels, time.Minute, "labels.maxTTL", time.Minute},
		{"policies", Limits{Policies: Scope{MaxTTL: hour}, Node: Node{DefaultTTL: hour}}, Policies, time.Hour, "policies.maxTTL", time.Hour},
		{"longer", Limits{Labels: Scope{MaxTTL: Duration(12 * time.Hour)}}, Labels, 12 * time.Hour, "labels.maxTTL", 10 * time.Minute},
	} {
		d := c.limits.Defaults(c.who)
		if got := c.limits.MaxTTL(c.who); got != c.most || d.MaxTTL != c.most || d.TTL != c.ttl {
			t.Errorf("%s, %s: at most %v, %v; default %v", c.name, c.who, got, d.MaxTTL, d.TTL)
		}
		if err := c.limits.AllowsTTL(c.who, "x", c.most); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		wantRefusal(t, c.limits.AllowsTTL(c.who, "x", c.most+1), c.field)
		if _, err := policy.ParseRule("r", "io error=EIO op=read path=/d ttl=25h", d); err == nil || !strings.Contains(err.Error(), c.field) || !strings.Contains(err.Error(), DefaultFile) {
			t.Errorf("%s: the rule's error %v does not name %s", c.name, err, c.field)
		}
	}
}

// P9: protected containers by namespace, label, name and image.
func TestProtected(t *testing.T) {
	for name, c := range map[string]struct {
		p        Protected
		lab, pod string // the field that protects
	}{
		"pod namespace":        {Protected{Namespaces: []Glob{"sh*"}}, "", "protected.namespaces"},
		"containerd namespace": {Protected{Namespaces: []Glob{"default"}}, "protected.namespaces", ""},
		"all of Kubernetes":    {Protected{Namespaces: []Glob{"k8s.io"}}, "", "protected.namespaces"},
		"label":                {Protected{Labels: map[string]Glob{"tier": "d?"}}, "protected.labels", ""},
		"other value":          {Protected{Labels: map[string]Glob{"tier": "web"}}, "", ""},
		"name":                 {Protected{Names: []Glob{"pg"}}, "protected.names", ""},
		"id":                   {Protected{Names: []Glob{"c1"}}, "protected.names", ""},
		"pod name":             {Protected{Names: []Glob{"web-*"}}, "", "protected.names"},
		"pod and name":         {Protected{Names: []Glob{"web-0/main"}}, "", "protected.names"},
		"familiar image":       {Protected{Images: []Glob{"postgres:*"}}, "protected.images", ""},
		"image without tag":    {Protected{Images: []Glob{"postgres"}}, "protected.images", ""},
		"full image":           {Protected{Images: []Glob{"docker.io/library/*"}}, "protected.images", ""},
		"image by digest":      {Protected{Images: []Glob{"registry.example/team/web"}}, "", "protected.images"},
		"other image":          {Protected{Images: []Glob{"postgres:15", "web"}}, "", ""},
	} {
		l := Limits{Protected: c.p, Labels: Scope{Namespaces: []Namespaces{"*"}}}
		for want, ctr := range map[*string]*Container{&c.lab: lab, &c.pod: pod} {
			err := l.Protects(ctr)
			if *want == "" && err != nil {
				t.Errorf("%s: %s: %v", name, ctr.Name, err)
			}
			if *want != "" {
				wantRefusal(t, err, *want)
			}
		}
	}
	system := &Container{Namespace: criNamespace, PodNamespace: "kube-system"}
	if err := (&Limits{Protected: Protected{Namespaces: []Glob{}}}).Protects(system); err != nil {
		t.Errorf("an empty list: %v", err)
	}
	if err := (&Limits{Protected: Protected{Labels: map[string]Glob{"keep": "*"}}}).Protects(&Container{Labels: map[string]string{"keep": ""}}); err == nil {
		t.Error("a label without a value")
	}
}

func TestEffective(t *testing.T) {
	e := Limits{}.Effective()
	if e.Labels.Namespaces == nil || len(e.Labels.Actions) != len(actions) || len(e.Labels.Hooks) != 0 || len(e.Policies.Hooks) != 1 || *e.Node.MaxPercent != 100 || len(e.Protected.Namespaces) != 1 {
		t.Errorf("%+v", e)
	}
	if errs := e.Check(); len(errs) > 0 {
		t.Error(errs)
	}
	for _, c := range []*Container{lab, pod} { // and they mean the same
		var l Limits
		if (e.AllowsContainer(Labels, c) == nil) != (l.AllowsContainer(Labels, c) == nil) || e.MaxTTL(Policies) != l.MaxTTL(Policies) {
			t.Error(c)
		}
	}
}

func TestCheck(t *testing.T) {
	percent := Percent(101)
	l := Limits{Labels: Scope{MaxTTL: Duration(25 * time.Hour)}, Node: Node{DefaultTTL: Duration(30 * time.Hour), MaxPercent: &percent}}
	errs := l.Check()
	for i, field := range []string{"limits.defaultTTL", "labels.maxTTL", "limits.maxPercent"} {
		if len(errs) != 3 || errs[i].Limit != field {
			t.Errorf("%v; want one about %s", errs, field)
		}
	}
}

func TestWords(t *testing.T) {
	for _, c := range []struct {
		into interface{ UnmarshalText([]byte) error }
		text string
		want string // empty: it is right
	}{
		{new(Glob), "lab-*", ""}, {new(Glob), "", "empty"}, {new(Glob), "a[", "not a pattern"},
		{new(Namespaces), "k8s.io", "k8s.io/*"}, {new(Namespaces), "k8s.io/*", ""}, {new(Namespaces), "", "empty"},
		{new(Action), "latency", ""}, {new(Action), "latncy", "did you mean latency?"}, {new(Action), "explode", "the actions are error"},
		{new(Hooks), "slab", ""}, {new(Hooks), "syscall:*", ""}, {new(Hooks), "*", ""}, {new(Hooks), "sycall:mount", "did you mean syscall?"}, {new(Hooks), "disk", "function:NAME"},
		{new(Duration), "90s", ""}, {new(Duration), "5", "with its unit"}, {new(Duration), "0s", "above zero"}, {new(Duration), "-1s", "above zero"},
	} {
		err := c.into.UnmarshalText([]byte(c.text))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%T %q: %v, want %q", c.into, c.text, err, c.want)
		}
	}
}

// P10: no more containers have faults than the node allows, however many ask at a time.
func TestAccount(t *testing.T) {
	l := &Limits{Node: Node{MaxContainers: 2}}
	var a Account[string]
	for _, k := range []string{"a", "b", "a"} {
		if err := a.Take(l, k, 10); err != nil {
			t.Fatal(err)
		}
	}
	wantRefusal(t, a.Take(l, "c", 10), "limits.maxContainers", "2 containers", "`limits: {maxContainers: 3}`")
	if again := a.Give("c"); len(again) != 0 {
		t.Errorf("one that had none made room: %v", again)
	}
	wantRefusal(t, a.Take(l, "c", 10), "limits.maxContainers")
	a.Adopt("d") // found with faults after a restart
	if again := a.Give("a"); len(again) != 1 || again[0] != "c" {
		t.Errorf("look again at %v", again)
	}
	wantRefusal(t, a.Take(l, "c", 10), "limits.maxContainers")
	if got := a.Waiting(); len(got) != 1 || len(a.Waiting()) != 0 {
		t.Errorf("waiting %v", got)
	}
	a.Give("b")
	if err := a.Take(l, "c", 10); err != nil || a.Len() != 2 {
		t.Errorf("%v, %d have faults", err, a.Len())
	}

	half := Percent(50)
	l = &Limits{Node: Node{MaxPercent: &half}}
	var share Account[int]
	wantRefusal(t, share.Take(l, 1, 1), "limits.maxPercent", "100") // half of one is none
	if err := share.Take(l, 1, 3); err != nil {
		t.Error(err)
	}
	wantRefusal(t, share.Take(l, 2, 3), "limits.maxPercent", "1 of the 3", "50%", "maxPercent: 67")
	if err := share.Take(l, 2, 4); err != nil {
		t.Error(err)
	}
	var none Percent
	wantRefusal(t, new(Account[int]).Take(&Limits{Node: Node{MaxPercent: &none}}, 1, 100), "limits.maxPercent")

	var race Account[int]
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if race.Take(&Limits{Node: Node{MaxContainers: 7}}, i, 64) == nil && race.Len() > 7 {
				t.Errorf("%d have faults", race.Len())
			}
		})
	}
	wg.Wait()
	if race.Len() != 7 {
		t.Errorf("%d have faults, want 7", race.Len())
	}
}
