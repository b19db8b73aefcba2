package process

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/faultgraft/faultgraft/plugin"
)

// agent runs a node agent on the rig's state directory. It finds no containerd, and needs none for what a person injects.
func (r *rig) agent() *exec.Cmd {
	r.t.Helper()
	cmd := r.command("plugin", "--disable-nri", "--containerd-address", filepath.Join(r.t.TempDir(), "containerd.sock"))
	log := filepath.Join(r.t.TempDir(), "agent.log")
	f, err := os.Create(log)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	cmd.Stderr = f
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }() // some tests kill it
	r.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have been killed by the test
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			r.t.Error("the agent does not end")
		}
		if b, err := os.ReadFile(log); r.t.Failed() && err == nil {
			r.t.Logf("agent:\n%s", b)
		}
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := plugin.NewClient(r.state).Health(context.Background()); err == nil {
			return cmd
		}
		if time.Now().After(end) {
			r.t.Fatal("the agent does not answer")
		}
	}
}

// metric adds up the series of a counter whose labels have the values given, as in "op=read".
func (r *rig) metric(name string, labels ...string) float64 {
	r.t.Helper()
	text, err := plugin.NewClient(r.state).Metrics(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		r.t.Fatal(err)
	}
	sum := 0.0
	for _, m := range families[name].GetMetric() {
		has := map[string]bool{}
		for _, l := range m.GetLabel() {
			has[l.GetName()+"="+l.GetValue()] = true
		}
		all := true
		for _, l := range labels {
			all = all && has[l]
		}
		if all {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// metricIs asks for a metric until it has a value, or for 20 s: on a busy machine a scrape
// does not wait for a keeper, and tells what it saw last.
func (r *rig) metricIs(want float64, name string, labels ...string) (got float64) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if got = r.metric(name, labels...); got == want || time.Now().After(end) {
			return got
		}
	}
}

// spun has the target make n calls and gives how many of them failed with errno.
func (h *holder) spun(path string, n int, op, errno string) float64 {
	h.t.Helper()
	seen := map[string]int{}
	if err := json.Unmarshal([]byte(h.ok("spin %s %d %s", path, n, op)), &seen); err != nil {
		h.t.Fatal(err)
	}
	return float64(seen[errno])
}

// P14: the metrics are the numbers that programs observed, to the last fault: while
// the graft lives, after its rules were changed, after it has ended, after the
// agent was killed and started again, and with a second graft after that. They never go down.
func TestMetricsAgree(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	agent := r.agent()
	const faults = "faultgraft_faults_total"
	is := func(what, name string, want float64, labels ...string) {
		t.Helper()
		if got := r.metricIs(want, name, labels...); got != want {
			t.Errorf("%s: %s%v is %v, the program saw %v", what, name, labels, got, want)
		}
	}
	g := r.inject(h, r.data, "io error=EIO op=read p=20% seed=7 ttl=5m", "io latency=1ms op=fsync ttl=5m")
	eio := h.spun(p, 2000, "read", "EIO")
	if eio == 0 {
		t.Fatal("no fault")
	}
	h.ok("open f %s rdwr", p)
	for range 5 {
		h.is("ok", "fsync f")
	}
	is("while it lives", faults, eio, "rule=rule-1", "kind=io", "op=read", "errno=EIO", "action=error", "policy=")
	is("while it lives", faults, 5, "op=fsync", "errno=", "action=latency")
	is("while it lives", "faultgraft_latency_added_seconds_total", 0.005, "op=fsync")
	is("while it lives", "faultgraft_container_faults_total", eio+5, fmt.Sprintf("container=pid-%d", h.pid()))

	r.update(g, "--drop", "rule-1", "--name", "more", "io error=EACCES op=read p=50% seed=3 ttl=5m")
	eacces := h.spun(p, 500, "read", "EACCES")
	is("after a change", faults, eio, "op=read", "errno=EIO")
	is("after a change", faults, eacces, "op=read", "errno=EACCES")

	r.recover(g)
	ended := func(what string) {
		t.Helper()
		is(what, faults, eio, "op=read", "errno=EIO")
		is(what, faults, eacces, "op=read", "errno=EACCES")
		is(what, faults, 5, "op=fsync")
		is(what, "faultgraft_container_faults_total", eio+eacces+5, fmt.Sprintf("container=pid-%d", h.pid()))
	}
	ended("after its end")
	ended("asked twice")
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.agent()
	ended("after the agent was killed")

	// A graft whose end the agent does not see is counted by the next one.
	g = r.inject(h, r.data, "io error=EIO op=read p=20% seed=8 ttl=5m")
	more := h.spun(p, 1000, "read", "EIO")
	is("a second graft", faults, eio+more, "op=read", "errno=EIO")
	r.recover(g)
	is("a second graft that ended", faults, eio+more, "op=read", "errno=EIO")
	if left, err := filepath.Glob(filepath.Join(r.state, "ended", "*")); err != nil || len(left) > 0 {
		t.Errorf("counted, and still there: %v %v", left, err)
	}
}

// A fault is counted also where the log of them cannot be written.
func TestMetricsWithoutLog(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	if err := os.MkdirAll(r.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(r.state, "events.jsonl")); err != nil {
		t.Fatal(err)
	}
	r.agent()
	g := r.inject(h, r.data, "io error=EIO op=read p=20% seed=7 ttl=5m")
	eio := h.spun(p, 1000, "read", "EIO")
	r.recover(g)
	if got := r.metricIs(eio, "faultgraft_faults_total", "errno=EIO"); got != eio || eio == 0 {
		t.Errorf("the metric says %v, the program saw %v", got, eio)
	}
}

// A server dies that no other can follow: what it has counted is not lost, whether anybody has asked for it before or not.
func TestCountsOfADeadServer(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	r.agent()
	r.env = noTakeover
	r.inject(h, r.data, "io error=EIO op=read p=20% seed=7 ttl=5m", "io latency=1ms op=fsync ttl=5m")
	h.ok("open f %s rdwr", p)
	h.is("ok", "fsync f")
	eio := h.spun(p, 1000, "read", "EIO")
	r.killServer(syscall.SIGKILL)
	r.awaitOff(time.Minute, "still grafted")
	if got := r.metricIs(eio, "faultgraft_faults_total", "op=read", "errno=EIO", "action=error"); got != eio || eio == 0 {
		t.Errorf("the metric says %v, the program saw %v", got, eio)
	}
	if got := r.metricIs(1, "faultgraft_faults_total", "op=fsync", "errno=", "action=latency"); got != 1 {
		t.Errorf("the metric says %v fsyncs, the program saw one", got)
	}
}
