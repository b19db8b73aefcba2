package plugin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/policy/limits"
)

// settings are what can change while the agent runs.
type settings struct {
	containerdNamespaces []string
	startBudget          time.Duration
	limits               limits.Limits
	// effective is the configuration that they come from, with its defaults.
	effective Config
}

func settingsOf(o Options) *settings {
	s := &settings{containerdNamespaces: o.ContainerdNamespaces, startBudget: o.StartBudget}
	if o.Limits != nil {
		s.limits = *o.Limits
	}
	return s
}

// watches reports whether a containerd namespace is looked at.
func (s *settings) watches(namespace string) bool {
	return len(s.containerdNamespaces) == 0 || slices.Contains(s.containerdNamespaces, namespace)
}

// configure takes the configuration that the runtime hands over, and the file:
// all of it the first time, later what can change at run time. On an error what
// was in force before stays so.
func (a *agent) configure(handed Config) error {
	a.configuring.Lock()
	defer a.configuring.Unlock()
	c := Config{}
	if a.base.ConfigFile != "" {
		var err error
		if c, err = LoadConfig(a.base.ConfigFile, a.base.ConfigFileOptional); err != nil {
			return err
		}
	}
	c = c.under(handed)
	for _, err := range c.check() { // each makes sense; together they may not
		return fmt.Errorf("configuration: %w", err)
	}
	select {
	case <-a.configured:
		if err := a.change(c); err != nil {
			return err
		}
	default:
		if err := a.setup(c); err != nil {
			return err
		}
	}
	a.handed = handed
	return nil
}

// change brings what can change at run time to a configuration.
func (a *agent) change(c Config) error {
	o := a.base.merge(c).withDefaults()
	if err := o.validate(); err != nil {
		return err
	}
	for _, f := range []struct{ name, is, asked string }{
		{"stateDir", a.opts.StateDir, o.StateDir}, {"containerdAddress", a.opts.ContainerdAddress, o.ContainerdAddress},
	} {
		if f.is != f.asked {
			return fmt.Errorf("configuration: %s is %s, but this agent runs with %s: start it with the same, or take the line out", f.name, f.asked, f.is)
		}
	}
	if err := a.applyLog(c, o.StateDir); err != nil {
		return err
	}
	old := a.loop.settings.Swap(a.settings(o, c))
	if !slices.Equal(old.containerdNamespaces, o.ContainerdNamespaces) {
		select {
		case a.kick <- struct{}{}:
		default: // already on its way
		}
	}
	if a.loop.policies != nil {
		a.loop.policies.store.LimitsChanged()
	}
	a.loop.lookAtAll()
	return nil
}

func (a *agent) settings(o Options, c Config) *settings {
	s := settingsOf(o)
	c.StateDir, c.ContainerdAddress, c.ContainerdNamespaces, c.NRI.StartBudget = o.StateDir, o.ContainerdAddress, o.ContainerdNamespaces, limits.Duration(o.StartBudget)
	s.effective = c.Effective()
	return s
}

// reloadWhenAsked reads the configuration file anew whenever Reload says so.
func (a *agent) reloadWhenAsked(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.base.Reload:
		}
		if err := a.reload(); err != nil {
			a.metrics.problems.WithLabelValues("configuration").Inc()
			a.log.Error("the configuration was not reloaded; the one before stays in force", "file", a.base.ConfigFile, "err", err)
		} else {
			a.log.Info("configuration reloaded", "file", a.base.ConfigFile)
		}
	}
}

func (a *agent) reload() error {
	a.configuring.Lock()
	handed := a.handed
	a.configuring.Unlock()
	return a.configure(handed)
}
