package plugin

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseConfig(t *testing.T) {
	got, err := ParseConfig(`# the agent
stateDir: /run/fg
containerdAddress: /run/c.sock
containerdNamespaces: [default, k8s.io]
protectedNamespaces: [kube-system, infra]
log: {level: debug, file: /var/log/fg.log}
nri: {startBudget: 900ms}
rules: {defaultTTL: 1m, maxTTL: 1h30m}
`)
	want := Config{
		StateDir: "/run/fg", ContainerdAddress: "/run/c.sock", ContainerdNamespaces: []string{"default", "k8s.io"},
		ProtectedNamespaces: []string{"kube-system", "infra"}, Log: LogConfig{Level: "debug", File: "/var/log/fg.log"},
		NRI: NRIConfig{StartBudget: Duration(900 * time.Millisecond)}, Rules: RulesConfig{Duration(time.Minute), Duration(90 * time.Minute)},
	}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "# c\n---\nstateDir: /x\n", "{}"} {
		if _, err := ParseConfig(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestParseConfigRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"stateDirr: /x":                                  `unknown field "stateDirr"`,
		"log: {levell: debug}":                           `unknown field "levell"`,
		"log: {level: loud}":                             `log level "loud": use debug, info, warn or error`,
		"stateDir: run/x":                                `state directory "run/x": not an absolute path`,
		"containerdAddress: c.sock":                      "not an absolute path",
		"nri: {startBudget: 5}":                          "write a number with its unit",
		"nri: {startBudget: 5 parsecs}":                  "write a number with its unit",
		"nri: {startBudget: -1s}":                        "must be above zero",
		"nri: {startBudget: 0s}":                         "must be above zero",
		"rules: {defaultTTL: 2h, maxTTL: 1h}":            "longer than the longest one allowed",
		"containerdNamespaces: ['']":                     "empty namespace",
		"containerdNamespaces: default":                  "cannot unmarshal",
		"stateDir: /a\nstateDir: /b":                     "already set",
		"stateDir: /a\n---\nstateDir: /b":                "line 2: a second document",
		"stateDir: /a\n...\nstateDir: /b":                "line 2: a second document",
		"--- {stateDir: /a}\n--- {containerdAddress: x}": "line 2: a second document",
		"stateDir: [":                                    "configuration:",
	} {
		if _, err := ParseConfig(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q in it", text, err, want)
		}
	}
}

func TestOptionsWinOverConfiguration(t *testing.T) {
	c, err := ParseConfig("stateDir: /from/config\ncontainerdAddress: /from/config.sock\nnri: {startBudget: 1s}")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{StateDir: "/from/options"}.merge(c).withDefaults()
	if o.StateDir != "/from/options" || o.ContainerdAddress != "/from/config.sock" || o.StartBudget != time.Second || o.NRISocket != DefaultNRISocket {
		t.Errorf("%+v", o)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{"", "stateDir: /x", "log: {level: info}", "nri: {startBudget: 1s}", "---\n...\n", "rules: {maxTTL: 1h}", "a: &a [*a]", "\x00", "containerdNamespaces: [a, b]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseConfig(text)
		if err != nil {
			return
		}
		// What is accepted says the same when it is written out again.
		b, err := json.Marshal(struct {
			*Config
			NRI   *NRIConfig   `json:"nri,omitempty"`
			Rules *RulesConfig `json:"rules,omitempty"`
		}{Config: &c})
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseConfig(string(b))
		if err != nil {
			t.Fatalf("%q gave %s, which is refused: %v", text, b, err)
		}
		again.NRI, again.Rules = c.NRI, c.Rules
		if !cmp.Equal(c, again) && !strings.Contains(text, "[]") {
			t.Errorf("%q: %s", text, cmp.Diff(c, again))
		}
	})
}
