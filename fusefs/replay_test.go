package fusefs_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/policy"
)

// F3: the same seed and the same sequence of operations give the same log of
// faults, down to the places and waits that were drawn, and leave the same
// file; another seed gives another.
func TestReplay(t *testing.T) {
	run := func(seed int) ([]fusefs.Event, string) {
		b := over(t, setup{direct: true})
		b.write("f", string(make([]byte, 1<<16)))
		fd := b.open("f", unix.O_RDWR)
		var rules []policy.Rule
		for i, text := range []string{
			"error=EIO:3,ENOSPC:1 op=write p=10%",
			"latency=uniform(1us,200us) op=read p=20%",
			"short=random op=read p=30%",
			"corrupt=random(3,16) op=read+write p=30%",
			"torn=sectors op=write p=50% after=5 every=2",
			"lost op=fsync p=50%",
		} {
			r, err := policy.ParseRule(fmt.Sprintf("r%d", i), fmt.Sprintf("io path=/data/** %s seed=%d", text, seed+i), policy.Defaults{})
			must(t, err)
			rules = append(rules, r)
		}
		must(t, b.SetRules(rules, time.Now()))
		for i := range int64(200) {
			at := i * 2654435761 % 15 * 4096 // everywhere, in no order
			data := make([]byte, 4096)
			for j := range data {
				data[j] = byte(i)
			}
			_, _ = unix.Pwrite(fd, data, at) // what they answer is in the log
			_, _ = unix.Pread(fd, data, at)
			_ = unix.Fsync(fd)
		}
		events := b.recorded()
		for i := range events {
			events[i].Time, events[i].PID = time.Time{}, 0
		}
		return events, content(b, "f")
	}
	log, file := run(7)
	again, sameFile := run(7)
	if diff := cmp.Diff(log, again); diff != "" {
		t.Errorf("the same seed gives another log: %s", diff)
	}
	if file != sameFile {
		t.Error("the same seed leaves another file")
	}
	actions := map[fusefs.Action]int{}
	for _, e := range log {
		actions[e.Action]++
	}
	for _, a := range []fusefs.Action{fusefs.ActionError, fusefs.ActionLatency, fusefs.ActionShort, fusefs.ActionCorrupt, fusefs.ActionTorn, fusefs.ActionLost} {
		if actions[a] < 5 {
			t.Errorf("%d faults of the kind %s are too few to show anything: %v", actions[a], a, actions)
		}
	}
	other, otherFile := run(1000)
	if cmp.Equal(log, other) || file == otherFile {
		t.Error("another seed gives the same log or file")
	}
}
