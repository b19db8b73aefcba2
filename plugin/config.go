package plugin

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Config is the agent's configuration file: YAML, every field optional, an
// unknown field is an error. containerd hands it to a plugin from
// /etc/nri/conf.d/10-faultgraft.conf.
type Config struct {
	StateDir             string      `json:"stateDir,omitempty"`
	ContainerdAddress    string      `json:"containerdAddress,omitempty"`
	ContainerdNamespaces []string    `json:"containerdNamespaces,omitempty"`
	ProtectedNamespaces  []string    `json:"protectedNamespaces,omitempty"`
	Log                  LogConfig   `json:"log,omitempty"`
	NRI                  NRIConfig   `json:"nri,omitempty"`
	Rules                RulesConfig `json:"rules,omitempty"`

	Metrics MetricsConfig `json:"metrics,omitempty"`
	Audit   AuditConfig   `json:"audit,omitempty"`
}

// LogConfig says what is logged, and where.
type LogConfig struct {
	// Level is debug, info, warn or error; default info.
	Level string `json:"level,omitempty"`
	// Format is text or json; default text.
	Format LogFormat `json:"format,omitempty"`
	// File takes the log when containerd launched the agent; default daemon.log in the state directory.
	File string `json:"file,omitempty"`
}

// NRIConfig is about the NRI plugin.
type NRIConfig struct {
	// StartBudget bounds how long a container's start waits for its grafts, as in 1500ms.
	StartBudget Duration `json:"startBudget,omitempty"`
}

// RulesConfig bounds what labels can ask for.
type RulesConfig struct {
	DefaultTTL Duration `json:"defaultTTL,omitempty"`
	MaxTTL     Duration `json:"maxTTL,omitempty"`
}

// Duration is a time.Duration that YAML writes as 90s or 1h30m.
type Duration time.Duration

// UnmarshalJSON reads a string as time.ParseDuration does; a bare number has no unit and is refused.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("duration %s: write a number with its unit, as in 1500ms or 10m", b)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("duration %q: write a number with its unit, as in 1500ms or 10m", s)
	}
	if v <= 0 {
		return fmt.Errorf("duration %q: must be above zero", s)
	}
	*d = Duration(v)
	return nil
}

// MarshalJSON writes what UnmarshalJSON reads.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// ParseConfig reads a configuration; an empty one is valid.
func ParseConfig(text string) (Config, error) {
	var c Config
	if n := secondDocument(text); n > 0 {
		return Config{}, fmt.Errorf("configuration, line %d: a second document starts here; keep one", n)
	}
	if err := yaml.UnmarshalStrict([]byte(text), &c); err != nil {
		what := strings.TrimPrefix(err.Error(), "error unmarshaling JSON: while decoding JSON: json: ")
		return Config{}, fmt.Errorf("configuration: %s; docs/plugin.md lists the fields", what)
	}
	if _, err := c.level(); err != nil {
		return Config{}, err
	}
	if err := (Options{}).merge(c).withDefaults().validate(); err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

// secondDocument returns the line at which a second YAML document starts, or
// 0: the YAML library reads the first one and drops the others without a word.
func secondDocument(text string) int {
	started := false
	for i, line := range strings.Split(text, "\n") {
		l := strings.TrimSpace(line)
		switch marker := strings.HasPrefix(line, "---") || strings.HasPrefix(line, "..."); {
		case marker && started:
			return i + 1
		case marker:
			started = strings.HasPrefix(line, "...") || l != "---"
		case l != "" && !strings.HasPrefix(l, "#"):
			started = true
		}
	}
	return 0
}

// level is the log level the configuration asks for; nil if it does not say.
func (c Config) level() (*slog.Level, error) {
	if c.Log.Level == "" {
		return nil, nil
	}
	var l slog.Level
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
		if err := l.UnmarshalText([]byte(c.Log.Level)); err != nil {
			return nil, err
		}
		return &l, nil
	}
	return nil, fmt.Errorf("configuration: log level %q: use debug, info, warn or error", c.Log.Level)
}

// merge fills what the options left out from the configuration.
func (o Options) merge(c Config) Options {
	o = o.observe(c)
	if o.StateDir == "" {
		o.StateDir = c.StateDir
	}
	if o.ContainerdAddress == "" {
		o.ContainerdAddress = c.ContainerdAddress
	}
	if o.ContainerdNamespaces == nil {
		o.ContainerdNamespaces = c.ContainerdNamespaces
	}
	if o.ProtectedNamespaces == nil {
		o.ProtectedNamespaces = c.ProtectedNamespaces
	}
	if o.StartBudget == 0 {
		o.StartBudget = time.Duration(c.NRI.StartBudget)
	}
	if o.DefaultTTL == 0 {
		o.DefaultTTL = time.Duration(c.Rules.DefaultTTL)
	}
	if o.MaxTTL == 0 {
		o.MaxTTL = time.Duration(c.Rules.MaxTTL)
	}
	return o
}
