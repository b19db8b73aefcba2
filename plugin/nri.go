package plugin

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/api"
)

// criNamespace is the containerd namespace of CRI containers, and the only one
// that NRI in containerd 2.4 knows.
const criNamespace = "k8s.io"

// nriPlugin answers NRI. Its errors would fail the request that the runtime is
// about, so after Configure it returns none, but for the start of a container
// that a policy with `required: true` has chosen and whose faults are not there:
// else a fault is never a reason not to start a container.
type nriPlugin struct {
	// loop is there once Configure has returned.
	loop      func() *reconciler
	metrics   *metrics
	log       *slog.Logger
	configure func(Config) error
	// requestTimeout is what the runtime allows for one request, known after Configure.
	requestTimeout func() time.Duration
	// refused is why Configure refused. The connection can be seen to close before that answer is seen to fail.
	refused atomic.Pointer[error]
}

// handedFile is what errors call the configuration that the runtime holds.
const handedFile = "10-faultgraft.conf of NRI's plugin_config_path"

// Configure takes the configuration that the runtime holds for this plugin.
func (p *nriPlugin) Configure(_ context.Context, text, runtime, version string) (api.EventMask, error) {
	c, err := ParseConfig(handedFile, text)
	if text == "" {
		c.File = "" // there is none; the node's own is the place to write to
	}
	if err == nil && c.Runtime.WithoutAgent != "" {
		err = fmt.Errorf("%s: runtime.withoutAgent: the runc wrapper does not see this file; write it to %s", handedFile, DefaultConfigFile)
	}
	if err == nil {
		err = p.configure(c)
	}
	if err != nil {
		p.metrics.problems.WithLabelValues("configuration").Inc()
		p.refused.Store(&err)
		p.log.Error("configuration refused", "runtime", runtime, "version", version, "err", err)
		return 0, err
	}
	p.log.Info("configured by the runtime", "runtime", runtime, "version", version)
	return 0, nil // all events that this type has a method for
}

// Synchronize takes the containers that are there already.
func (p *nriPlugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	defer p.observe("Synchronize", time.Now())
	byID := make(map[string]*api.PodSandbox, len(pods))
	for _, pod := range pods {
		byID[pod.GetId()] = pod
	}
	running := 0
	for _, c := range containers {
		switch c.GetState() {
		case api.ContainerState_CONTAINER_CREATED, api.ContainerState_CONTAINER_RUNNING, api.ContainerState_CONTAINER_PAUSED:
			running++
			p.loop().observe(fromNRI(byID[c.GetPodSandboxId()], c), false)
		}
	}
	p.log.Info("containers that are there already", "source", sourceNRI, "pods", len(pods), "containers", running)
	return nil, nil
}

// StartContainer grafts before the container's first instruction: its task is
// there, with its final mount namespace, and does not run before this returns.
func (p *nriPlugin) StartContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	begin := time.Now()
	defer p.observe("StartContainer", begin)
	c := fromNRI(pod, container)
	done := p.loop().observe(c, true)
	if done == nil {
		return nil
	}
	budget := time.NewTimer(p.budget())
	defer budget.Stop()
	late := true
	select {
	case <-done:
		late = false
	case <-ctx.Done():
		p.late(c, begin, ctx.Err())
	case <-budget.C:
		p.late(c, begin, nil)
	}
	if err := p.loop().startable(c.Key, late); err != nil {
		p.log.Error("a container must not start", "container", c.String(), "name", c.DisplayName(), "err", err)
		return err
	}
	return nil
}

// budget stays below what the runtime allows: it cuts a slower plugin off.
func (p *nriPlugin) budget() time.Duration {
	budget := p.loop().settings.Load().startBudget
	if t := p.requestTimeout(); t > 0 {
		budget = min(budget, t*3/4)
	}
	return budget
}

func (p *nriPlugin) late(c Container, begin time.Time, err error) {
	p.metrics.late.Inc()
	p.log.Warn("a container starts before its grafts are there; they follow while it runs", "container", c.String(), "name", c.DisplayName(), "waited", time.Since(begin), "err", err)
}

// StopContainer comes when the container has been stopped.
func (p *nriPlugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	defer p.observe("StopContainer", time.Now())
	p.loop().ended(Key{criNamespace, c.GetId()}, 0)
	return nil, nil
}

// RemoveContainer comes when the container is deleted.
func (p *nriPlugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	defer p.observe("RemoveContainer", time.Now())
	p.loop().remove(Key{criNamespace, c.GetId()})
	return nil
}

// Shutdown says that the runtime is about to end. Targets keep their grafts.
func (p *nriPlugin) Shutdown(context.Context) {
	p.log.Info("the runtime shuts down; grafts stay")
}

func (p *nriPlugin) observe(request string, begin time.Time) {
	p.metrics.nri.WithLabelValues(request).Observe(time.Since(begin).Seconds())
}

// fromNRI puts NRI's description of a container into ours.
func fromNRI(pod *api.PodSandbox, c *api.Container) Container {
	m := metadata{
		podLabels: pod.GetLabels(), podAnnotations: pod.GetAnnotations(),
		labels: c.GetLabels(), annotations: c.GetAnnotations(),
	}
	out := Container{
		Key: Key{criNamespace, c.GetId()}, Name: c.GetName(), Pod: pod.GetName(), PodNamespace: pod.GetNamespace(),
		Image: c.GetImage().GetName(), PID: int(c.GetPid()), Source: sourceNRI,
	}
	if out.Name == "" {
		out.Name = out.ID
	}
	m.devices = map[string]string{}
	for _, h := range c.GetHooks().GetPoststart() {
		maps.Copy(m.devices, HookRules(h.GetArgs()))
	}
	out.Labels, out.annotated = m.merge()
	out.meta = m
	return out
}

// nriLogger sends the stub's log to ours; what it calls information is detail to a user.
type nriLogger struct{ log *slog.Logger }

func (l nriLogger) Debugf(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, args...))
}

func (l nriLogger) Infof(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, args...))
}

func (l nriLogger) Warnf(ctx context.Context, format string, args ...any) {
	l.log.WarnContext(ctx, fmt.Sprintf(format, args...))
}

func (l nriLogger) Errorf(ctx context.Context, format string, args ...any) {
	l.log.ErrorContext(ctx, fmt.Sprintf(format, args...))
}
