package plugin

import (
	"cmp"
	"context"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
)

// metrics are what GET /metrics tells; docs/observability.md lists them.
type metrics struct {
	registry *prometheus.Registry
	seen     *prometheus.CounterVec
	problems *prometheus.CounterVec
	grafts   *prometheus.CounterVec
	// kernelFaults counts what was done with them.
	kernelFaults *prometheus.CounterVec
	pause        *prometheus.HistogramVec
	longest      *prometheus.HistogramVec
	reconcile    prometheus.Histogram
	nri          *prometheus.HistogramVec
	late         prometheus.Counter
	connected    *prometheus.GaugeVec
	// eventDelay is from when containerd made an event until it was looked at.
	eventDelay *prometheus.HistogramVec
}

// newMetrics makes them; version is this build's.
func newMetrics(version string) *metrics {
	buckets := prometheus.ExponentialBuckets(0.0001, 2.5, 12) // 0.1 ms to 2.4 s
	m := &metrics{
		registry: prometheus.NewRegistry(),
		seen: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "faultgraft_containers_seen_total",
			Help: "Containers seen since the agent started, by where they were seen first."}, []string{"source"}),
		problems: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "faultgraft_problems_total",
			Help: "Things that kept a container from what its labels ask for, by kind."}, []string{"kind"}),
		grafts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "faultgraft_graft_operations_total",
			Help: "Grafts that the agent made, whose rules it changed, that it recovered, and what of these failed."}, []string{"result"}),
		kernelFaults: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "faultgraft_kernel_fault_operations_total",
			Help: "Kernel faults that the agent armed, that have ended, and that could not be armed."}, []string{"result"}),
		pause: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "faultgraft_pause_seconds",
			Help: "From the first process stopped to the last one resumed, by what was done: graft, change, ungraft.", Buckets: buckets}, []string{"operation"}),
		longest: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "faultgraft_process_pause_seconds",
			Help: "How long the process stood still that did so for the longest, by what was done.", Buckets: buckets}, []string{"operation"}),
		reconcile: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "faultgraft_reconcile_duration_seconds",
			Help: "Time to bring one container that has rules to its labels.", Buckets: prometheus.ExponentialBuckets(0.0001, 3, 13)}),
		nri: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "faultgraft_nri_request_duration_seconds",
			Help: "Time that NRI waited for an answer, by request.", Buckets: buckets}, []string{"request"}),
		late: prometheus.NewCounter(prometheus.CounterOpts{Name: "faultgraft_nri_late_total",
			Help: "Containers that started before their grafts were there, because the start budget was used up."}),
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "faultgraft_connected",
			Help: "1 while the agent is connected to the source, else 0."}, []string{"source"}),
	}
	m.eventDelay = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "faultgraft_event_delay_seconds",
		Help: "From when containerd made an event until the agent took it up, by topic.", Buckets: buckets}, []string{"topic"})
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "faultgraft_build_info",
		Help: "1, with the version of the agent and what it was built for."}, []string{"version", "goversion", "goarch"})
	build.WithLabelValues(cmp.Or(version, "devel"), runtime.Version(), runtime.GOARCH).Set(1)
	m.registry.MustRegister(m.eventDelay, build, m.seen, m.problems, m.grafts, m.kernelFaults, m.pause, m.longest, m.reconcile, m.nri, m.late, m.connected,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, s := range []string{sourceNRI, sourceContainerd} {
		m.connected.WithLabelValues(s).Set(0)
	}
	return m
}

// paused takes note of how long processes stood still.
func (m *metrics) paused(operation string, g keeper.Graft) {
	m.pause.WithLabelValues(operation).Observe(g.PauseMs / 1000)
	m.longest.WithLabelValues(operation).Observe(g.LongestPauseMs / 1000)
}

// scrapeTimeout bounds how long a scrape asks keepers.
const scrapeTimeout = 2 * time.Second

// liveCollector reads containers and grafts when it is scraped, so that what it tells is never old.
type liveCollector struct {
	r *reconciler
}

var (
	containersDesc = prometheus.NewDesc("faultgraft_containers", "Containers known now, by the state of their rules.", []string{"state"}, nil)
	graftsDesc     = prometheus.NewDesc("faultgraft_grafts", "Grafts on this node now, by state and by who asked for them.", []string{"state", "origin"}, nil)
	matchedDesc    = prometheus.NewDesc("faultgraft_rule_matched_total", "Operations that a rule of a live graft matched.", []string{"graft", "container", "rule"}, nil)

	faultsDesc = prometheus.NewDesc("faultgraft_faults_total", "Faults injected on this node, by policy, rule, kind (io, kernel), operation or hook point, action and errno.",
		[]string{"policy", "rule", "kind", "op", "action", "errno"}, nil)
	delayDesc = prometheus.NewDesc("faultgraft_latency_added_seconds_total", "How long operations were made to wait, by policy, rule and operation.",
		[]string{"policy", "rule", "op"}, nil)
	containerFaultsDesc = prometheus.NewDesc("faultgraft_container_faults_total", "Faults injected into a container, by policy and rule; until some time after its last one.",
		[]string{"namespace", "container", "name", "policy", "rule"}, nil)

	takeoversDesc = prometheus.NewDesc("faultgraft_server_takeovers_total", "How often the server of a live graft died and another served its layer on, since the agent started.", nil, nil)

	policiesDesc = prometheus.NewDesc("faultgraft_policies", "Policies of this node, by phase.", []string{"phase"}, nil)
	targetsDesc  = prometheus.NewDesc("faultgraft_policy_targets", "Containers of policies, by policy and state.", []string{"policy", "state"}, nil)

	kernelLabels        = []string{"fault", "container", "rule", "hook"}
	kernelFaultsDesc    = prometheus.NewDesc("faultgraft_kernel_faults", "Kernel faults in force now, by hook point, by backend and by who asked for them.", []string{"hook", "backend", "origin"}, nil)
	kernelEvaluatedDesc = prometheus.NewDesc("faultgraft_kernel_faults_evaluated_total", "How often the hook point of a live kernel fault was reached in its cgroup.", kernelLabels, nil)
	kernelMatchedDesc   = prometheus.NewDesc("faultgraft_kernel_faults_matched_total", "How often the rule of a live kernel fault was about what reached it.", kernelLabels, nil)
	kernelInjectedDesc  = prometheus.NewDesc("faultgraft_kernel_faults_injected_total", "Errors that a live kernel fault injected.", kernelLabels, nil)
	kernelDroppedDesc   = prometheus.NewDesc("faultgraft_kernel_faults_dropped_events_total", "Injections of a live kernel fault that are not in the event log, because the kernel's buffer was full.", kernelLabels, nil)
)

// Describe implements prometheus.Collector.
func (l liveCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		containersDesc, graftsDesc, matchedDesc, faultsDesc, delayDesc, containerFaultsDesc, takeoversDesc, policiesDesc, targetsDesc, kernelFaultsDesc, kernelEvaluatedDesc, kernelMatchedDesc, kernelInjectedDesc, kernelDroppedDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (l liveCollector) Collect(ch chan<- prometheus.Metric) {
	states := map[State]int{StateNone: 0, StatePending: 0, StateActive: 0, StateRefused: 0, StateFailed: 0, StateExcluded: 0}
	for _, c := range l.r.containers() {
		states[c.State]++
	}
	for s, n := range states {
		ch <- prometheus.MustNewConstMetric(containersDesc, prometheus.GaugeValue, float64(n), string(s))
	}
	l.collectKernel(ch)
	l.collectPolicies(ch)
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	grafts, err := l.r.ledger.collect(ctx)
	l.collectFaults(ch)
	ch <- prometheus.MustNewConstMetric(takeoversDesc, prometheus.CounterValue, float64(l.r.ledger.takeoverCount()))
	if err != nil { // told beside those that could be listed
		ch <- prometheus.NewInvalidMetric(graftsDesc, err)
	}
	type label struct{ state, origin string }
	counts := map[label]int{}
	for _, g := range grafts {
		counts[label{string(g.State), string(g.Origin)}]++
		seen := map[string]bool{} // one series a rule name, whatever its label
		for _, rule := range g.Rules {
			if seen[rule.Name] {
				continue
			}
			seen[rule.Name] = true
			ch <- prometheus.MustNewConstMetric(matchedDesc, prometheus.CounterValue, float64(rule.Matched), g.ID, g.Target.ID, rule.Name)
		}
	}
	for l, n := range counts {
		ch <- prometheus.MustNewConstMetric(graftsDesc, prometheus.GaugeValue, float64(n), l.state, l.origin)
	}
}

// collectKernel tells of the kernel faults.
func (l liveCollector) collectKernel(ch chan<- prometheus.Metric) {
	type label struct{ hook, backend, origin string }
	counts := map[label]int{}
	for _, f := range l.r.kernelFaults() {
		k, n := f.Kernel, f.Kernel.Counters
		counts[label{k.Hook, k.Backend, string(f.Origin)}]++
		for _, m := range []struct {
			desc  *prometheus.Desc
			value uint64
		}{{kernelEvaluatedDesc, n.Evaluated}, {kernelMatchedDesc, n.Matched}, {kernelInjectedDesc, n.Injected}, {kernelDroppedDesc, n.Dropped}} {
			ch <- prometheus.MustNewConstMetric(m.desc, prometheus.CounterValue, float64(m.value), f.ID, f.Target.ID, f.Rules[0].Name, k.Hook)
		}
	}
	for l, n := range counts {
		ch <- prometheus.MustNewConstMetric(kernelFaultsDesc, prometheus.GaugeValue, float64(n), l.hook, l.backend, l.origin)
	}
}

// collectFaults tells of the faults that were injected, as the ledger knows them.
func (l liveCollector) collectFaults(ch chan<- prometheus.Metric) {
	faults, containers := l.r.ledger.totals()
	type label struct{ policy, rule, op string }
	delays := map[label]float64{}
	for k, n := range faults {
		ch <- prometheus.MustNewConstMetric(faultsDesc, prometheus.CounterValue, float64(n.N), k.Policy, k.Rule, k.Kind, k.Op, k.Action, k.Errno)
		if k.Kind == "io" {
			delays[label{k.Policy, k.Rule, k.Op}] += n.Delay.Seconds()
		}
	}
	for k, s := range delays {
		ch <- prometheus.MustNewConstMetric(delayDesc, prometheus.CounterValue, s, k.policy, k.rule, k.op)
	}
	for k, n := range containers {
		ch <- prometheus.MustNewConstMetric(containerFaultsDesc, prometheus.CounterValue, float64(n), k.Namespace, k.ID, k.Name, k.Policy, k.Rule)
	}
}

// collectPolicies tells of the policies; their names come from root.
func (l liveCollector) collectPolicies(ch chan<- prometheus.Metric) {
	if l.r.policies == nil {
		return
	}
	phases := map[policies.Phase]int{}
	for _, p := range l.r.policies.store.List() {
		phases[p.Phase]++
		for state, n := range p.States {
			ch <- prometheus.MustNewConstMetric(targetsDesc, prometheus.GaugeValue, float64(n), p.Name, string(state))
		}
	}
	for phase, n := range phases {
		ch <- prometheus.MustNewConstMetric(policiesDesc, prometheus.GaugeValue, float64(n), string(phase))
	}
}
