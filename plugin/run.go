package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/stub"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
)

// shutdownGrace is how long a graft that is being made may go on after the
// agent was told to stop; what is not done by then is cancelled and rolls back.
const shutdownGrace = 5 * time.Second

// Run is the agent. It returns when ctx ends, or, launched by containerd, when
// containerd's connection does: nil then, and targets keep their grafts in
// either case. Started by hand or by a service manager it connects to NRI and
// to containerd again when they were away.
func Run(ctx context.Context, opts Options) error {
	launched, err := launchedByRuntime()
	if err != nil {
		return err
	}
	a := &agent{base: opts, metrics: newMetrics(opts.Version), configured: make(chan struct{}), kick: make(chan struct{}, 1)}
	a.nri.gauge = a.metrics.connected.WithLabelValues(sourceNRI)
	a.containerd.gauge = a.metrics.connected.WithLabelValues(sourceContainerd)
	a.nri.set(false, errConnecting)
	a.containerd.set(false, errConnecting)
	a.openLogger(launched != nil)
	defer a.closeLog()
	if launched != nil {
		return a.runLaunched(ctx, launched)
	}
	if err := a.configure(Config{}); err != nil {
		return err
	}
	return a.run(ctx, func(ctx context.Context) error {
		if !a.opts.DisableNRI {
			a.followNRI(ctx)
		}
		<-ctx.Done()
		return nil
	})
}

// errConnecting: the first attempt to reach a source is not over.
var errConnecting = errors.New("connecting")

// agent is one run of the agent.
type agent struct {
	base     Options // as the caller gave them
	opts     Options // with the configuration and the defaults
	log      *slog.Logger
	handler  *switchHandler // nil: the caller's logger
	launched bool           // by containerd
	level    slog.LevelVar
	logFile  *os.File
	metrics  *metrics
	// listener serves metrics over TCP; nil: nobody asked for it.
	listener *listener

	loop       *reconciler
	runtime    *containerdRuntime
	cancelWork context.CancelFunc
	nri        connection
	containerd connection
	nriTimeout atomic.Int64 // what the runtime allows for one request, once it has configured this plugin

	configuring sync.Mutex
	handed      Config        // what the runtime handed over
	configured  chan struct{} // closed when setup is done
	kick        chan struct{} // the watcher has to look at other namespaces
}

func (a *agent) openLogger(launched bool) {
	if a.base.Logger != nil {
		a.log = a.base.Logger
		return
	}
	h := newSwitchHandler(newHandler(os.Stderr, a.base.LogFormat, &a.level))
	a.handler, a.launched = &h, launched
	a.log = slog.New(h)
}

func (a *agent) closeLog() {
	if a.logFile != nil {
		_ = a.logFile.Close() // nothing is left to write to it
	}
}

// setup makes what the agent works with, once it knows its configuration.
func (a *agent) setup(c Config) error {
	o := a.base.merge(c).withDefaults()
	if err := o.validate(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := a.applyLog(c, o.StateDir); err != nil {
		return err
	}
	if err := keeper.SetAudit(o.StateDir, o.Audit); err != nil {
		return err
	}
	atStart.Pass("folder")
	mem, warning, err := loadMemory(o.StateDir, time.Now())
	if err != nil {
		return err
	}
	if warning != nil {
		a.metrics.problems.WithLabelValues("memory").Inc()
		a.log.Error("the agent's memory is lost", "err", warning)
	}
	d, err := dialContainerd(o.ContainerdAddress)
	if err != nil {
		return err
	}
	// Not below the caller's context: what is half done when that ends is brought to its end first.
	work, cancel := context.WithCancel(context.Background())
	if o.Grafter == nil {
		o.Grafter = &keeper.Client{StateDir: o.StateDir}
	}
	a.opts, a.runtime, a.cancelWork = o, d, cancel
	faults := newKernelFaults(runningKernel(kernel.Options{Log: a.log}), o.StateDir, a.log)
	a.loop = &reconciler{
		grafter: o.Grafter, faults: faults, lookup: d, imageLabels: d.imageLabels, memory: mem, metrics: a.metrics, log: a.log, stateDir: o.StateDir, check: checkProcess, now: time.Now, firstRetry: defaultFirstRetry, blind: warning != nil,
	}
	ledger, warning, err := loadLedger(o.StateDir, o.Grafter, a.loop.kernelFaults, a.log, time.Now)
	if err != nil {
		return err
	}
	if warning != nil {
		a.metrics.problems.WithLabelValues("memory").Inc()
		a.log.Error("fault counters are lost", "err", warning)
	}
	a.loop.ledger = ledger
	a.loop.open(work, a.settings(o, c))
	if err := a.loop.openPolicies(policies.Options{}); err != nil {
		return err
	}
	a.metrics.registry.MustRegister(liveCollector{a.loop})
	close(a.configured)
	return nil
}

func (a *agent) applyLog(c Config, stateDir string) error {
	level, err := c.level()
	if err != nil {
		return err
	}
	if a.base.Logger != nil {
		if c.Log != (LogConfig{}) {
			a.log.Warn("the configuration's log section does not apply: this agent was given its log by its caller")
		}
		return nil
	}
	if level != nil {
		a.level.Set(*level)
	}
	format := a.base.observe(c).LogFormat
	if !a.launched {
		a.handler.set(newHandler(os.Stderr, format, &a.level))
	} else if a.logFile == nil { // standard error is /dev/null
		f, err := openLog(c.Log, stateDir)
		if err != nil {
			return err
		}
		a.logFile = f
		a.handler.set(newHandler(f, format, &a.level))
	}
	return nil
}

func (a *agent) plugin() *nriPlugin {
	return &nriPlugin{loop: func() *reconciler { return a.loop }, metrics: a.metrics, log: a.log, configure: a.configure}
}

// runLaunched is a run under containerd: it ends with the connection.
func (a *agent) runLaunched(ctx context.Context, l *launch) error {
	defer func() { _ = l.conn.Close() }() // the stub closes it too
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	started := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		p := a.plugin()
		_, err := nriSession(ctx, p, func() { a.nriTimeout.Store(int64(p.requestTimeout())); close(started) },
			stub.WithConnection(l.conn), stub.WithPluginIdx(l.index), stub.WithPluginName(l.name))
		ended <- err
	}()
	select {
	case err := <-ended:
		if ctx.Err() != nil {
			return nil
		}
		return err
	case <-started:
	}
	a.nri.set(true, nil)
	return a.run(ctx, func(ctx context.Context) error {
		select {
		case err := <-ended:
			a.nri.set(false, err)
			a.log.Info("the runtime ended the connection; this agent ends, grafts stay", "err", err)
		case <-ctx.Done():
			cancel()
			a.log.Debug("the connection to the runtime is closed", "err", <-ended)
		}
		return nil
	})
}

// followNRI keeps a connection to NRI until ctx ends.
func (a *agent) followNRI(ctx context.Context) {
	pause := backoff{max: nriReconnectMax}
	for ctx.Err() == nil {
		p := a.plugin()
		connected, err := nriSession(ctx, p, func() {
			a.nriTimeout.Store(int64(p.requestTimeout()))
			a.nri.set(true, nil)
			a.log.Info("connected to NRI", "socket", a.opts.NRISocket)
		}, stub.WithSocketPath(a.opts.NRISocket), stub.WithPluginIdx(a.opts.PluginIndex), stub.WithPluginName(a.opts.PluginName))
		if ctx.Err() != nil {
			break
		}
		if connected {
			pause.reset()
		}
		if up, why := a.nri.get(); up || why != err.Error() {
			a.log.Warn("not connected to NRI; will try again. CRI containers are grafted around their start instead of before it", "socket", a.opts.NRISocket, "err", err)
		}
		a.nri.set(false, err)
		pause.sleep(ctx)
	}
	a.nri.set(false, nil)
}

// run serves the control socket and follows containerd while body runs; it ends
// when body does or when the control socket cannot be served.
func (a *agent) run(ctx context.Context, body func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &server{loop: a.loop, log: a.log, health: a.health, ready: a.readiness}
	watch := &watcher{runtime: a.runtime, loop: a.loop, state: &a.containerd, log: a.log, kick: a.kick}
	if left, err := keeper.Sweep(a.opts.StateDir); err != nil {
		a.log.Warn("what was left by processes that were killed", "err", err)
	} else if len(left) > 0 {
		a.log.Info("removed what was left by processes that were killed", "paths", left)
	}
	atStart.Pass("swept")
	if err := a.loop.faults.adopt(); err != nil {
		a.metrics.problems.WithLabelValues("kernel").Inc()
		a.log.Error("kernel faults that outlived an earlier agent", "err", err)
	}
	atStart.Pass("adopted")
	if a.opts.MetricsListen != "" {
		a.listener = newListener(a.opts.MetricsListen, a.metrics, a.health, a.readiness, a.log)
	}
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	listening := make(chan struct{})
	wg.Go(func() {
		defer cancel()
		errs <- srv.serve(ctx, a.opts.StateDir, func() { close(listening) })
	})
	select {
	case <-listening:
		atStart.Pass("listening")
		a.notify("READY=1\nSTATUS=watching containers")
		if !a.opts.DisableNRI && !a.loop.settings.Load().watches(criNamespace) {
			a.log.Warn("CRI containers are left alone: the containerd namespaces to look at do not include "+criNamespace, "namespaces", a.opts.ContainerdNamespaces)
		}
		a.log.Info("the agent runs", "pid", os.Getpid(), "stateDir", a.opts.StateDir)
		wg.Go(func() { watch.run(ctx) })
		wg.Go(func() { a.followOrphans(ctx) })
		wg.Go(func() { a.loop.ledger.run(ctx) })
		if a.listener != nil {
			wg.Go(func() { a.listener.run(ctx) })
		}
		wg.Go(func() { a.loop.policies.store.Run(ctx) })
		defer time.AfterFunc(knownAfter, a.loop.containersKnown).Stop()
		wg.Go(func() { a.reloadWhenAsked(ctx) })
		wg.Go(func() {
			defer cancel()
			errs <- body(ctx)
		})
	case <-ctx.Done():
		errs <- nil
	}
	<-ctx.Done()
	a.notify("STOPPING=1")
	wg.Wait()
	atEnd.Pass("deaf")
	kerr := a.loop.faults.close() // first: nothing else ends them
	atEnd.Pass("disarmed")
	a.stopWork()
	atEnd.Pass("rested")
	err := errors.Join(<-errs, <-errs, kerr, a.runtime.Close())
	a.log.Info("the agent ends; grafts stay with their keepers, kernel faults have ended but for those that were asked to outlive it", "err", err)
	return err
}

// stopWork lets what is being grafted come to its end, for a while.
func (a *agent) stopWork() {
	a.loop.queue.close()
	grace := time.AfterFunc(shutdownGrace, a.cancelWork)
	a.loop.queue.wait()
	grace.Stop()
	a.cancelWork()
}

func (a *agent) notify(state string) {
	if err := notifySystemd(state); err != nil {
		a.log.Warn("service manager", "err", err)
	}
}

func (a *agent) health() Health {
	h := Health{OK: true, PID: os.Getpid(), Version: a.opts.Version, RequestTimeout: Duration(a.nriTimeout.Load())}
	h.StartBudget = Duration(a.loop.settings.Load().startBudget)
	h.NRI.Connected, h.NRI.Reason = a.nri.get()
	h.Containerd.Connected, h.Containerd.Reason = a.containerd.get()
	if a.opts.DisableNRI {
		h.NRI.Reason = "disabled"
	}
	return h
}
