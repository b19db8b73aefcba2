package process

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// P12: who did what to whom, and why: of a graft, a change of its rules, its end, a refusal, a stop and a release.
func TestAudit(t *testing.T) {
	r := newRig(t)
	r.write("f", "0123456789")
	h := r.start()
	r.agent()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	r.update(g, "io error=ENOSPC op=fsync ttl=5m")
	r.recover(g)
	if out, err := r.run("inject", "--pid", "1", "--path", r.data, "io error=EIO op=fsync ttl=5m"); err == nil {
		t.Errorf("pid 1 was grafted: %s", out)
	}
	if _, err := r.run("stop", "--all", "--reason", "a test of the audit log"); err != nil {
		t.Error(err)
	}
	if _, err := r.run("inject", "--pid", "1", "--path", r.data, "io error=EIO op=fsync ttl=5m"); err == nil {
		t.Error("a stopped node was grafted")
	}
	if _, err := r.run("release"); err != nil {
		t.Error(err)
	}
	f, err := os.Open(filepath.Join(r.state, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	want := []struct {
		kind            keeper.EventType
		rule, message   string
		container, user bool
	}{
		{keeper.EventGraft, "error=EIO op=fsync", "", true, true},
		{keeper.EventRules, "error=ENOSPC op=fsync", "ended rule", true, true},
		{keeper.EventUngraft, "", "asked for", true, true},
		{keeper.EventRefused, "error=EIO op=fsync", "pid 1", false, true},
		{keeper.EventStop, "", "a test of the audit log", false, false},
		{keeper.EventRefused, "error=EIO op=fsync", "a test of the audit log", false, true},
		{keeper.EventRelease, "", "a test of the audit log", false, false},
	}
	s := bufio.NewScanner(f)
	n := 0
	for ; s.Scan(); n++ {
		var e keeper.Event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatalf("%q: %v", s.Text(), err)
		}
		if n >= len(want) {
			t.Errorf("one more: %s", s.Text())
			continue
		}
		w := want[n]
		switch {
		case e.Type != w.kind, e.Time.IsZero(), !strings.Contains(e.Who, "uid 0"), !strings.Contains(e.Message, w.message),
			!strings.Contains(strings.Join(e.Rules, " "), w.rule), w.container && (e.Target == "" || e.Graft != g.ID), w.user && e.By != keeper.OriginUser:
			t.Errorf("entry %d: %s; want %+v", n, s.Text(), w)
		}
	}
	if n < len(want) {
		t.Errorf("%d entries, want %d", n, len(want))
	}
}
