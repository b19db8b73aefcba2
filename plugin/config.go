package plugin

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/policy/limits"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// DefaultConfigFile is where the node's configuration is looked for.
const DefaultConfigFile = limits.DefaultFile

// Duration is a time that YAML writes as 90s or 1h30m.
type Duration = limits.Duration

// Config is the node's configuration: YAML, every field optional, an unknown
// field is an error. It is a file, DefaultConfigFile, and what containerd hands
// to its plugin, from /etc/nri/conf.d/10-faultgraft.conf.
type Config struct {
	// Labels, Policies, Limits and Protected are what limits.Limits has.
	Labels    limits.Scope     `json:"labels,omitzero"`
	Policies  limits.Scope     `json:"policies,omitzero"`
	Limits    limits.Node      `json:"limits,omitzero"`
	Protected limits.Protected `json:"protected,omitzero"`

	StateDir             string    `json:"stateDir,omitempty"`
	ContainerdAddress    string    `json:"containerdAddress,omitempty"`
	ContainerdNamespaces []string  `json:"containerdNamespaces,omitzero"`
	Log                  LogConfig `json:"log,omitzero"`
	NRI                  NRIConfig `json:"nri,omitzero"`
	// Runtime is about `faultgraft runc`, which reads it where the agent does not answer.
	Runtime RuntimeConfig `json:"runtime,omitzero"`

	Metrics MetricsConfig `json:"metrics,omitzero"`
	Audit   AuditConfig   `json:"audit,omitzero"`

	// File is where it was read, for errors.
	File string `json:"-"`
}

// LogConfig says what is logged, and where.
type LogConfig struct {
	// Level is debug, info, warn or error; default info.
	Level LogLevel `json:"level,omitempty"`
	// Format is text or json; default text.
	Format LogFormat `json:"format,omitempty"`
	// File takes the log when containerd launched the agent; default daemon.log in the state directory.
	File string `json:"file,omitempty"`
}

// LogLevel is the name of a level; empty is info.
type LogLevel string

// UnmarshalText refuses what is no level.
func (l *LogLevel) UnmarshalText(text []byte) error {
	switch string(text) {
	case "debug", "info", "warn", "error":
		*l = LogLevel(text)
		return nil
	}
	return fmt.Errorf("log level %q: use debug, info, warn or error", text)
}

// level is the log level the configuration asks for; nil if it does not say.
func (c Config) level() (*slog.Level, error) {
	if c.Log.Level == "" {
		return nil, nil
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.Log.Level)); err != nil {
		return nil, err
	}
	return &l, nil
}

// NRIConfig is about the NRI plugin.
type NRIConfig struct {
	// StartBudget bounds how long a container's start waits for its grafts, as in 1500ms.
	StartBudget limits.Duration `json:"startBudget,omitempty"`
}

// RuntimeConfig is about the runc wrapper.
type RuntimeConfig struct {
	// WithoutAgent is what a container does that the agent gives no answer for; default start.
	WithoutAgent WithoutAgent `json:"withoutAgent,omitempty"`
}

// WithoutAgent is what a container does that the agent gives no answer for.
type WithoutAgent string

// A container without an answer starts, or is refused.
const (
	WithoutAgentStart  WithoutAgent = "start"
	WithoutAgentRefuse WithoutAgent = "refuse"
)

// Values lists them.
func (WithoutAgent) Values() []string {
	return []string{string(WithoutAgentStart), string(WithoutAgentRefuse)}
}

// NodeLimits are the limits of the configuration.
func (c Config) NodeLimits() limits.Limits {
	return limits.Limits{Labels: c.Labels, Policies: c.Policies, Node: c.Limits, Protected: c.Protected, File: c.File}
}

// ParseConfig reads a configuration; an empty one is valid. file is its name, for
// errors. The error is strictyaml.Errors: all that is wrong, each with its place.
func ParseConfig(file, text string) (Config, error) {
	c := Config{File: file}
	docs, err := strictyaml.Read(file, []byte(text))
	if err != nil {
		return Config{}, err
	}
	switch len(docs) {
	case 0:
		return c, nil
	case 1:
	default:
		return Config{}, strictyaml.Errors{docs[1].ErrorAt("", 0, "a second document starts here", "keep one")}
	}
	if err := docs[0].Decode(&c); err != nil {
		return Config{}, err
	}
	var wrong strictyaml.Errors
	for _, e := range c.check() {
		wrong = append(wrong, docs[0].ErrorAt(e.Limit, 0, e.Message, e.Fix))
	}
	if len(wrong) > 0 {
		return Config{}, wrong
	}
	return c, nil
}

// check says all that makes no sense in a configuration whose fields are right one by one.
func (c Config) check() []*limits.Error {
	l := c.NodeLimits()
	errs := l.Check()
	for field, path := range map[string]string{"stateDir": c.StateDir, "containerdAddress": c.ContainerdAddress, "log.file": c.Log.File} {
		if path != "" && !filepath.IsAbs(path) {
			errs = append(errs, &limits.Error{Limit: field, Message: fmt.Sprintf("%q is not an absolute path", path), Fix: "begin it with a slash"})
		}
	}
	if c.Metrics.Listen != "" {
		if err := checkListen(c.Metrics.Listen, c.Metrics.Remote); err != nil {
			errs = append(errs, &limits.Error{Limit: "metrics.listen", Message: err.Error()})
		}
	}
	if err := checkAudit(c.Audit.audit()); err != nil {
		errs = append(errs, &limits.Error{Limit: "audit", Message: err.Error()})
	}
	if slices.Contains(c.ContainerdNamespaces, "") {
		errs = append(errs, &limits.Error{Limit: "containerdNamespaces", Message: "an empty namespace in the list", Fix: "remove it"})
	}
	slices.SortFunc(errs, func(a, b *limits.Error) int { return strings.Compare(a.Limit, b.Limit) })
	return errs
}

// LoadConfig reads the configuration file. optional: one that is not there counts as an empty one.
func LoadConfig(file string, optional bool) (Config, error) {
	b, err := os.ReadFile(file)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return Config{File: file}, nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return ParseConfig(file, string(b))
}

// under gives the configuration of the file with what the runtime handed over on
// top: each of its sections that says anything takes the place of the file's.
func (c Config) under(top Config) Config {
	c.File = cmp.Or(c.File, top.File)
	pick(&c.StateDir, top.StateDir)
	pick(&c.ContainerdAddress, top.ContainerdAddress)
	pick(&c.Log.Level, top.Log.Level)
	pick(&c.Log.Format, top.Log.Format)
	pick(&c.Log.File, top.Log.File)
	pick(&c.Metrics, top.Metrics)
	pick(&c.Audit, top.Audit)
	pick(&c.NRI, top.NRI)
	pick(&c.Limits, top.Limits)
	if top.ContainerdNamespaces != nil {
		c.ContainerdNamespaces = top.ContainerdNamespaces
	}
	for _, s := range []struct{ to, from *limits.Scope }{{&c.Labels, &top.Labels}, {&c.Policies, &top.Policies}} {
		if f := s.from; f.Namespaces != nil || f.Actions != nil || f.Hooks != nil || f.MaxTTL != 0 {
			*s.to = *f
		}
	}
	if p := top.Protected; p.Namespaces != nil || p.Labels != nil || p.Names != nil || p.Images != nil {
		c.Protected = p
	}
	return c
}

// pick takes a value that is not the zero value.
func pick[T comparable](to *T, from T) {
	var zero T
	if from != zero {
		*to = from
	}
}

// Effective gives the configuration with all defaults written out.
func (c Config) Effective() Config {
	o := (Options{}).merge(c).withDefaults()
	l := c.NodeLimits().Effective()
	c.Labels, c.Policies, c.Limits, c.Protected = l.Labels, l.Policies, l.Node, l.Protected
	c.StateDir, c.ContainerdAddress = o.StateDir, o.ContainerdAddress
	if c.ContainerdNamespaces == nil {
		c.ContainerdNamespaces = []string{}
	}
	if c.Log.Level == "" {
		c.Log.Level = "info"
	}
	c.Log.Format = cmp.Or(c.Log.Format, "text")
	c.NRI.StartBudget = limits.Duration(o.StartBudget)
	c.Runtime.WithoutAgent = cmp.Or(c.Runtime.WithoutAgent, WithoutAgentStart)
	return c
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
	if o.StartBudget == 0 {
		o.StartBudget = time.Duration(c.NRI.StartBudget)
	}
	if o.Limits == nil {
		l := c.NodeLimits()
		o.Limits = &l
	}
	return o
}
