package main

import (
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// A line of events says what was done to the operation.
func TestEventLine(t *testing.T) {
	at := time.Date(2026, 1, 2, 12, 0, 3, 118243000, time.Local)
	base := keeper.Event{Time: at, Type: keeper.EventFault, Graft: "g-1", Name: "pg", Rule: "wal", Op: "write", Path: "/data/f", Offset: 512, Size: 4096, PID: 7, N: 3}
	for want, change := range map[string]func(*keeper.Event){
		" -> EIO":                   func(e *keeper.Event) { e.Action, e.Errno = "error", "EIO" },
		" delayed 20 ms":            func(e *keeper.Event) { e.Action, e.LatencyMs = "latency", 20 },
		" hang delayed 20 ms (cut)": func(e *keeper.Event) { e.Action, e.LatencyMs, e.Cut = "hang", 20, true },
		" short: 10 bytes":          func(e *keeper.Event) { e.Action, e.Bytes = "short", 10 },
		" torn: 0 bytes -> EIO":     func(e *keeper.Event) { e.Action, e.Errno = "torn", "EIO" },
		" lost":                     func(e *keeper.Event) { e.Action = "lost" },
		" nospace: 100 bytes":       func(e *keeper.Event) { e.Action, e.Bytes = "nospace", 100 },
		" quota -> EDQUOT":          func(e *keeper.Event) { e.Action, e.Errno = "quota", "EDQUOT" },
		" corrupt: 5 bytes in 2 places": func(e *keeper.Event) {
			e.Action, e.Places = "corrupt", []fusefs.Place{{Offset: 1, Size: 2}, {Offset: 9, Size: 3}}
		},
	} {
		e := base
		change(&e)
		if got := eventLine(e); got != "12:00:03.118243  fault    g-1 pg  wal #3: write /data/f [512+4096] by thread 7"+want {
			t.Errorf("%q, want ...%q", got, want)
		}
	}
	if got := eventLine(keeper.Event{Time: at, Type: keeper.EventGraft, Graft: "g-1", Name: "pg", Path: "/data"}); !strings.HasSuffix(got, "g-1 pg  /data") {
		t.Error(got)
	}
	paused := keeper.Event{Time: at, Type: keeper.EventPolicy, Policy: "pg-wal", Run: 2, Action: "stopped", By: keeper.OriginPolicy, Who: "uid 0, pid 7", Message: "site is red"}
	if got := eventLine(paused); got != "12:00:03.118243  policy   pg-wal stopped  run 2  (uid 0, pid 7)  site is red" {
		t.Error(got)
	}
}
