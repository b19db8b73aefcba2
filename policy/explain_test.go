package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExplain(t *testing.T) {
	tests := []struct{ rule, want string }{
		{"io error=EIO op=fsync path=/data/**", `
does: fails with EIO (input/output error)
on: fsync
path: /data/**
when: all of them
from: its activation on
until: a ttl of 10m0s is over
layer: over /data`},
		{"io error=EIO:3,ENOSPC latency=pareto(10ms,1.5) cap=1s op=all path=/data/*.db exclude=/data/x,/data/y p=5% times=3 ttl=1m seed=7", `
does: waits 10ms or longer, Pareto distributed with the tail index 1.5 (half of the waits above 15.9ms, 1 in 100 above 215ms), at most 1s; then fails with EIO (input/output error, 75%) or ENOSPC (no space left on device, 25%)
on: every operation but release and releasedir
path: /data/*.db
but not: /data/x, /data/y
when: all of them, each with a probability of 5%, at most 3 times
from: its activation on
until: a ttl of 1m0s is over
seed: 7
layer: over /data`},
		{"io short=7.5% op=data path=/d comm=dd,x exe=/**/dd uid=0,5-9 pid=2- offset=0-4KiB size=512- nth=3 afterBytes=1MiB delay=1s active=2s idle=3s", `
does: transfers 7.5% of what was asked for, at least one byte
on: read and write
path: /d
by: threads named dd or x, the program /**/dd, uid 0 or 5 to 9, pid 2 or more
where: it touches bytes 0 to 4095 of the file, counted from 0, and it is for 512 bytes or more
when: from the one on that goes beyond 1MiB, number 3 only
from: 1s after its activation on, in turns 2s active and 3s at rest
until: a ttl of 10m0s is over
layer: over /d`},
		{"io throttle=10MiB/s,200ops/s burst=1MiB,20ops latency=5ms hang op=write path=/d after=100 every=50", `
does: waits for its turn at 10MiB a second and 200 operations a second, after a rest 1MiB and 20 operations at once; then waits 5ms; then hangs until it is released (faultgraft release), killed, or the rule ends
on: write
path: /d
when: number 101 and each 50 after it
from: its activation on
until: a ttl of 10m0s is over
layer: over /d`},
	}
	for _, tt := range tests {
		r, err := ParseRule("r", tt.rule, Defaults{})
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for _, m := range r.Explain() {
			got.WriteString("\n" + m.Name + ": " + m.Text)
		}
		if diff := cmp.Diff(tt.want, got.String()); diff != "" {
			t.Errorf("%s: %s", tt.rule, diff)
		}
	}
}

// TestExplainActions has the words for each action and filter.
func TestExplainActions(t *testing.T) {
	for fields, want := range map[string]string{
		"latency=20ms op=read":                "waits 20ms",
		"latency=uniform(10ms,50ms) op=read":  "waits 10ms to 50ms, evenly drawn (half of the waits above 30ms, 1 in 100 above 49.6ms)",
		"latency=normal(20ms,5ms) op=read":    "waits 20ms on average, normally distributed with a standard deviation of 5ms (half of the waits above 20ms, 1 in 100 above 31.6ms)",
		"latency=exp(20ms) op=read":           "waits 20ms on average, exponentially distributed (half of the waits above 13.9ms, 1 in 100 above 92.1ms)",
		"short=1 op=read":                     "transfers 1 byte at most",
		"short=4KiB op=read":                  "transfers 4KiB at most",
		"short=random op=read":                "transfers from one byte to one less than was asked for",
		"corrupt=bitflip op=read":             "has a bit of each byte flipped, in one place of one byte",
		"corrupt=zero(4,16) op=read":          "has bytes become 0, in 4 places of up to 16 bytes",
		"corrupt=random(1,2KiB) op=read":      "has bytes become random others, in one place of up to 2KiB",
		"torn=prefix op=write":                "writes a part from the start, or nothing, of whole units of 512 bytes but never all, and is acknowledged",
		"torn=sectors(4KiB) error=EIO op=all": "writes some parts, or none, of whole units of 4KiB but never all, and fails with EIO (input/output error)",
		"lost op=fsync":                       "is acknowledged and not done",
		"nospace=0":                           "fails with ENOSPC if it takes space; statfs agrees",
		"quota=1GiB":                          "fails with EDQUOT if it takes space, once 1GiB more are taken; statfs agrees",
		"attr=size:0,perm:0600":               "tells other attributes: size:0, perm:0600",
		"error=EIO op=read offset=7":          "it touches byte 7 of the file, counted from 0",
		"error=EIO op=read offset=1KiB-":      "it touches the file from byte 1024 on, counted from 0",
		"error=EIO op=read size=1-4KiB":       "it is for 1 byte to 4KiB",
		"error=EIO op=read p=0":               "all of them, but never, because p is 0",
		"error=EIO op=read p=1e-9":            "all of them, each with a probability of 1e-09",
		"error=EIO op=read p=0.1%":            "all of them, each with a probability of 0.1%",
		"error=EIO op=read every=5":           "the first of each 5",
		"error=EIO op=read after=5":           "all after the first 5",
		"corrupt=zero op=write":               "drawn when the rule is applied, and shown there",
	} {
		r, err := ParseRule("r", "io path=/d "+fields, Defaults{})
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, m := range r.Explain() {
			found = found || m.Text == want
		}
		if !found {
			t.Errorf("%s is explained as %q, without %q", fields, r.Explain(), want)
		}
	}
}
