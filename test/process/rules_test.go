package process

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// update changes the rules of a graft and fails the test if it cannot.
func (r *rig) update(g keeper.Graft, args ...string) keeper.Graft {
	r.t.Helper()
	out, err := r.run(slices.Concat([]string{"update", g.ID, "-o", "json"}, stopDeadline(), args)...)
	if err != nil {
		r.t.Fatalf("update: %v%s", err, r.logs())
	}
	var changed keeper.Graft
	if err := json.Unmarshal([]byte(out), &changed); err != nil || changed.ID != g.ID || changed.State != keeper.StateActive {
		r.t.Fatalf("update answered %q: %v", out, err)
	}
	return changed
}

// G24: several paths, targets and rules at once; rules are changed, added and
// ended in place, each change for its own graft only, and nobody is stopped.
func TestRulesChangeInPlace(t *testing.T) {
	r := newRig(t)
	var targets []*holder
	var grafts [][]keeper.Graft
	var before []map[string]string
	paths := []string{filepath.Join(r.data, "a"), filepath.Join(r.data, "b")}
	for i, p := range paths {
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
		r.write(filepath.Base(p)+"/f", fmt.Sprint("file", i))
	}
	for range 2 {
		h := r.start()
		for i, p := range paths {
			h.ok("open f%d %s/f rdwr", i, p)
		}
		before = append(before, h.snapshot())
		g := []keeper.Graft{
			r.inject(h, paths[0], "io error=EIO op=fsync ttl=5m", "io error=EACCES op=mkdir ttl=5m"),
			r.inject(h, paths[1], "io error=ENOSPC op=fsync ttl=5m"),
		}
		targets, grafts = append(targets, h), append(grafts, g)
	}
	check := func(h *holder, a, b, mkdir string) {
		t.Helper()
		h.is(a, "fsync f0")
		h.is(b, "fsync f1")
		h.is(mkdir, "mkdir %s/x", paths[0])
	}
	for _, h := range targets {
		check(h, "EIO", "ENOSPC", "EACCES")
	}
	unmoved := func(g keeper.Graft) {
		t.Helper()
		if len(g.Report.Stopped) > 0 || g.PauseMs != 0 {
			t.Errorf("stopped %+v for %v ms", g.Report.Stopped, g.PauseMs)
		}
	}
	during := targets[0].snapshot()

	// Other rules, of one graft of one target. The rule that stays keeps what it has counted.
	one := r.update(grafts[0][0], "io error=EACCES op=mkdir ttl=5m", "io error=EDQUOT op=fsync ttl=5m")
	unmoved(one)
	if len(one.Rules) != 2 || one.Rules[0].Fired != 1 || one.Rules[1].Fired != 0 || len(one.Added) != 1 {
		t.Errorf("%+v, added %q", one.Rules, one.Added)
	}
	check(targets[0], "EDQUOT", "ENOSPC", "EACCES")
	check(targets[1], "EIO", "ENOSPC", "EACCES")

	// inject over a path that is grafted adds, under a name of its own.
	added := r.inject(targets[1], paths[1], "io error=EROFS op=unlink ttl=5m")
	unmoved(added)
	if added.ID != grafts[1][1].ID || len(added.Rules) != 2 || len(added.Added) != 1 || added.Added[0] == added.Rules[0].Name {
		t.Errorf("%+v", added)
	}
	targets[1].is("EROFS", "unlink %s/f", paths[1])
	check(targets[1], "EIO", "ENOSPC", "EACCES")
	unmoved(r.update(added, "--drop", added.Rules[0].Name))
	check(targets[1], "EIO", "ok", "EACCES")
	targets[1].is("EROFS", "unlink %s/f", paths[1])

	// What is refused changes nothing.
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{grafts[0][1].ID}, "recover"},
		{[]string{grafts[0][1].ID, "--drop", "nobody"}, "no rule \"nobody\""},
		{[]string{grafts[0][1].ID, "--drop", "rule"}, "no rule would be left"},
		{[]string{grafts[0][1].ID, "io error=EIO op=read path=/elsewhere/**"}, "could never fire"},
		{[]string{grafts[0][1].ID, "io error=ENOSYS op=read"}, "ENOSYS"},
		{[]string{"g-12345678", "io error=EIO op=read"}, "no such graft"},
	} {
		out, err := r.run(append([]string{"update"}, c.args...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("update %q: %s, %v; want %q", c.args, out, err, c.want)
		}
	}
	check(targets[0], "EDQUOT", "ENOSPC", "EACCES")
	same(t, during, targets[0].snapshot())

	var told []string
	for _, e := range r.events() {
		if e.Type == keeper.EventRules {
			told = append(told, string(e.By)+" "+e.Message)
		}
	}
	if len(told) != 3 || !strings.Contains(told[0], "user new rule") || !strings.Contains(told[0], "error=EDQUOT") || !strings.Contains(told[2], "ended rule") {
		t.Errorf("events %q", told)
	}
	for i, h := range targets {
		for _, g := range grafts[i] {
			r.recover(g)
		}
		same(t, before[i], h.snapshot())
	}
}

// The graft ends with the last of the rules that it has by then.
func TestChangedRulesMoveTheEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.write("f", "x")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=8s") // long enough for the update on a slow machine
	r.update(g, "--keep", "io error=EIO op=fdatasync ttl=1h")
	for end := time.Now().Add(20 * time.Second); h.do("fsync f") != "ok"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the first rule does not end")
		}
	}
	time.Sleep(100 * time.Millisecond)
	h.is("EIO", "fdatasync f") // the layer did not go with it
	r.update(g, "io error=EIO op=mkdir ttl=1s")
	h.is("ok", "fdatasync f")
	r.awaitOff(20*time.Second, "still grafted")
	same(t, before, h.snapshot())
}
