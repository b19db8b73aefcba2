package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// command runs the command line in this process.
func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := newRootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"--state-dir", t.TempDir()}, args...))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := root.ExecuteContext(ctx)
	return out.String(), err
}

// There is a page for each command that a user sees, with its examples, and none for the others.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	if out, err := command(t, "man", dir); err != nil {
		t.Fatal(out, err)
	}
	for _, c := range newRootCommand().Commands() {
		page := filepath.Join(dir, "faultgraft-"+c.Name()+".8")
		b, err := os.ReadFile(page)
		if hidden := c.Hidden; hidden != (err != nil) {
			t.Errorf("%s: hidden %v, page: %v", c.Name(), hidden, err)
			continue
		}
		if err == nil && (!strings.Contains(string(b), "NAME") || strings.Contains(string(b), "0001")) {
			t.Errorf("%s: %.200s", page, b)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "faultgraft.8"))
	if err != nil || !strings.Contains(string(b), "faultgraft-top(8)") {
		t.Errorf("%v: %.300s", err, b)
	}
}

// Without an agent top says so, and what can be done.
func TestTopWithoutAgent(t *testing.T) {
	out, err := command(t, "top", "--once")
	if err == nil || !strings.Contains(err.Error(), "no faultgraft agent runs here") || !strings.Contains(err.Error(), "faultgraft ps") || out != "" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := command(t, "top", "--interval", "1ms"); err == nil || !strings.Contains(err.Error(), "at least 100ms") {
		t.Error(err)
	}
}

// The rate is that since the table before; the busiest rule comes first; what does not fit is told.
func TestTopTable(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	frame := func(seconds int, slow, busy uint64) *topFrame {
		return &topFrame{at: at.Add(time.Duration(seconds) * time.Second), known: 3, grafts: []keeper.Graft{
			{
				ID: "g-1", Target: keeper.Target{ID: "c1", Name: "pg"}, Path: "/data", State: keeper.StateActive, Origin: keeper.OriginLabel, Since: at.Add(-10 * time.Second),
				Rules:  []keeper.RuleStatus{{Name: "slow", Fired: slow, Expires: at.Add(time.Minute)}, {Name: "busy", Policy: "p1", Fired: busy, Expires: at.Add(time.Hour)}},
				Faults: []keeper.FaultCount{{Rule: "slow", Op: "read", Count: slow, DelayNs: time.Duration(slow) * time.Millisecond}},
			},
			{ID: "-", Target: keeper.Target{ID: "c2", Name: "web\x1b[2J"}, State: "refused", Reason: "unknown op"},
		}}
	}
	var b bytes.Buffer
	first := frame(0, 20, 100)
	first.print(&b, nil, 0, 0)
	frame(10, 40, 600).print(&b, first, 0, 0)
	var got []string
	for _, l := range strings.Split(strings.TrimSpace(b.String()), "\n") {
		got = append(got, strings.Join(strings.Fields(l), " "))
	}
	want := []string{
		"pg /data active policy p1 busy 10.0 100 - 1h0m0s", "pg /data active label slow 2.0 20 20ms 1m0s", "web?[2J - refused - - - - - unknown op",
		"pg /data active policy p1 busy 50.0 600 - 59m50s", "pg /data active label slow 2.0 40 40ms 50s", "web?[2J - refused - - - - - unknown op",
	}
	var rows []string
	for _, l := range got {
		if strings.HasPrefix(l, "pg") || strings.HasPrefix(l, "web") {
			rows = append(rows, l)
		}
	}
	if strings.Join(rows, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(rows, "\n"), strings.Join(want, "\n"))
	}
	if !strings.Contains(b.String(), "3 containers known, 1 graft in force, 52.0 faults/s") {
		t.Error(b.String())
	}
	b.Reset()
	first.print(&b, nil, 5, 30)
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	if len(lines) > 4 || lines[len(lines)-1] != "and 2 more" {
		t.Errorf("on a small terminal:\n%s", b.String())
	}
	for _, l := range lines {
		if len([]rune(l)) > 30 {
			t.Errorf("too wide: %q", l)
		}
	}
}
