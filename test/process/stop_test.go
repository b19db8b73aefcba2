package process

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// P8 without an agent: all grafts come off side by side, also one with an hour of
// latency pending; nothing starts until the release.
func TestStopAll(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	first, second := r.start(), r.start()
	first.ok("open f %s rdwr", p)
	second.ok("open f %s rdwr", p)
	before := [2]map[string]string{first.snapshot(), second.snapshot()}
	r.inject(first, r.data, "io error=EIO op=fsync ttl=5m")
	r.inject(second, r.data, "io latency=1h op=read ttl=2h")
	answer := second.begin("pread f 0 10")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // until the read waits
		grafts := r.list()
		if len(grafts) == 2 && grafts[1].Rules[0].Matched > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the read did not arrive: %+v", grafts)
		}
	}
	if out, err := r.run("stop", "--reason", "x"); err == nil {
		t.Errorf("stopped without --all: %s", out)
	}
	if out, err := r.run("stop", "--all"); err == nil {
		t.Errorf("stopped without a reason: %s", out)
	}
	out, err := r.run("stop", "--all", "--reason", "incident 4711", "-o", "json")
	if err != nil {
		t.Fatalf("stop: %v%s", err, r.logs())
	}
	var report plugin.StopReport
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Reverted) != 2 || len(report.Failed) != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	t.Logf("stopped in %.0f ms", report.TookMs)
	if got := <-answer; got != "ok 0123456789" {
		t.Errorf("the read that waited: %q", got)
	}
	first.is("ok", "fsync f")
	same(t, before[0], first.snapshot())
	same(t, before[1], second.snapshot())
	if left := r.list(); len(left) != 0 {
		t.Errorf("left after the stop: %+v", left)
	}
	inject := []string{"inject", "--pid", "1", "--path", r.data, "io error=EIO op=fsync ttl=5m"}
	if out, err := r.run(inject...); err == nil || !strings.Contains(err.Error(), "incident 4711") || !strings.Contains(err.Error(), "faultgraft release") {
		t.Errorf("injected in spite of the stop: %q, %v", out, err)
	}
	if out, err := r.run("release"); err != nil || !strings.Contains(out, "incident 4711") {
		t.Errorf("release: %q, %v", out, err)
	}
	if out, err := r.run("release"); err == nil || !strings.Contains(err.Error(), "not stopped") {
		t.Errorf("released twice: %q, %v", out, err)
	}
	for _, e := range r.events() {
		if who := e.Who; who == "" && e.Type != keeper.EventFault || who != "" && !strings.Contains(who, "(faultgraft)") {
			t.Errorf("asked for by %q: %+v", who, e)
		}
	}
	g := r.inject(first, r.data, "io error=EIO op=fsync ttl=5m")
	first.is("EIO", "fsync f")
	r.recover(g)
}
