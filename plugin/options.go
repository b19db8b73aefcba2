package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy/limits"
)

// Where the agent finds things unless it is told otherwise.
const (
	DefaultStateDir          = "/run/faultgraft"
	DefaultNRISocket         = "/var/run/nri/nri.sock"
	DefaultContainerdAddress = "/run/containerd/containerd.sock"
	DefaultPluginName        = "faultgraft"
	DefaultPluginIndex       = "10"
	// DefaultStartBudget is how long a container's start waits for its grafts. It
	// stays below NRI's request time-out of 2 s: a plugin that is slower is disconnected.
	DefaultStartBudget = 1500 * time.Millisecond
	// SocketName is the control socket's name in the state directory.
	SocketName = "daemon.sock"
)

// Grafter puts grafts on targets, changes their rules and takes them off; keeper.Client is one.
type Grafter interface {
	// Inject grafts one path; it starts the target's keeper if there is none.
	Inject(ctx context.Context, t keeper.Target, req keeper.Request) (keeper.Graft, error)
	// Update changes the rules of a graft in place.
	Update(ctx context.Context, id string, c keeper.Change) (keeper.Graft, error)
	// List returns all grafts of all keepers on this node.
	List(ctx context.Context) ([]keeper.Graft, error)
	// Ungraft takes one graft off.
	Ungraft(ctx context.Context, id string) (keeper.Graft, error)
	// StopAll takes all of them off, side by side.
	StopAll(ctx context.Context, reason string) ([]keeper.Graft, error)
}

// Options say how Run works. What they set wins over the configuration that
// containerd hands to a plugin; the zero value of a field leaves it to that
// configuration, and then to the defaults.
type Options struct {
	// Grafter does the work on targets; nil means the keepers of the state directory.
	Grafter Grafter
	// StateDir holds the control socket and the agent's memory; default DefaultStateDir.
	StateDir string
	// NRISocket is the socket to connect to; default DefaultNRISocket. Not used when containerd launched this process.
	NRISocket string
	// PluginName and PluginIndex are how the agent registers with NRI; default faultgraft and 10.
	PluginName  string
	PluginIndex string
	// DisableNRI leaves NRI alone: CRI containers are then seen by events only, after their start began.
	DisableNRI bool
	// ContainerdAddress is containerd's socket; default DefaultContainerdAddress.
	ContainerdAddress string
	// ContainerdNamespaces are the containerd namespaces to look at; empty means all.
	ContainerdNamespaces []string
	// StartBudget bounds how long the start of a container waits for its grafts; default DefaultStartBudget.
	StartBudget time.Duration
	// Limits say what may be asked for; nil means those of the configuration.
	Limits *limits.Limits
	// ConfigFile is the node's configuration; empty: there is none. Optional: it need not be there.
	ConfigFile         string
	ConfigFileOptional bool
	// Reload asks to read ConfigFile anew, as SIGHUP does; may be nil.
	Reload <-chan os.Signal
	// MetricsListen is a TCP address for metrics and health, read-only; empty: none. MetricsRemote: it may be one that other machines reach.
	MetricsListen string
	MetricsRemote bool
	// Audit says where the audit log is.
	Audit keeper.Audit
	// LogFormat is text or json; empty: text.
	LogFormat string
	// Version is this build's, for metrics.
	Version string
	// Logger is where the agent logs. Nil: standard error by hand, the file daemon.log in the state directory when containerd launched this process.
	Logger *slog.Logger
}

// withDefaults fills what was left out.
func (o Options) withDefaults() Options {
	fill := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	fill(&o.StateDir, DefaultStateDir)
	fill(&o.NRISocket, DefaultNRISocket)
	fill(&o.PluginName, DefaultPluginName)
	fill(&o.PluginIndex, DefaultPluginIndex)
	fill(&o.ContainerdAddress, DefaultContainerdAddress)
	if o.StartBudget == 0 {
		o.StartBudget = DefaultStartBudget
	}
	return o
}

// validate checks what a person can get wrong; defaults are filled in before.
func (o Options) validate() error {
	var errs []error
	for _, p := range []struct{ what, path string }{
		{"state directory", o.StateDir}, {"NRI socket", o.NRISocket}, {"containerd address", o.ContainerdAddress},
	} {
		if !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s %q: not an absolute path", p.what, p.path))
		}
	}
	if len(o.PluginIndex) != 2 || o.PluginIndex[0] < '0' || o.PluginIndex[0] > '9' || o.PluginIndex[1] < '0' || o.PluginIndex[1] > '9' {
		errs = append(errs, fmt.Errorf("NRI plugin index %q: give two digits, 00 to 99", o.PluginIndex))
	}
	if o.StartBudget < 0 {
		errs = append(errs, fmt.Errorf("start budget %v: give a positive duration", o.StartBudget))
	}
	if slices.Contains(o.ContainerdNamespaces, "") {
		errs = append(errs, errors.New("containerdNamespaces: an empty namespace in the list: remove it"))
	}
	if o.MetricsListen != "" {
		errs = append(errs, checkListen(o.MetricsListen, o.MetricsRemote))
	}
	errs = append(errs, checkAudit(o.Audit), checkLogFormat(o.LogFormat))
	return errors.Join(errs...)
}
