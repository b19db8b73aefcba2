package policies

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

func scheduled(c faultpolicy.Concurrency, ttl time.Duration) func(*faultpolicy.Spec) {
	return func(s *faultpolicy.Spec) {
		s.Timing = faultpolicy.Timing{TTL: faultpolicy.Duration(ttl), Schedule: "*/10 * * * *", Concurrency: c}
	}
}

func TestSchedule(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.pass(time.Minute) // 12:01
	n.apply(pg(scheduled("", 3*time.Minute)))
	if st := n.phase("pg", Waiting); !st.Next.Equal(start.Add(10 * time.Minute)) {
		t.Errorf("it is due at %v", st.Next)
	}
	n.wantRules("a")
	n.pass(9 * time.Minute)
	n.wantRules("a", "pg.1/wal 3m0s")
	n.pass(3 * time.Minute)
	n.wantRules("a")
	n.phase("pg", Waiting)
	n.pass(7 * time.Minute) // 12:20
	n.pass(time.Minute)
	n.wantRules("a", "pg.2/wal 2m0s")
	n.open() // in the middle of a run
	n.run("a")
	n.wantRules("a", "pg.2/wal 2m0s")
	n.pass(2 * time.Minute)
	n.must(n.s.Pause("pg", "root"))
	n.pass(10 * time.Minute)
	n.wantRules("a")
	n.must(n.s.Resume("pg", "root")) // 12:33
	n.phase("pg", Waiting)
	n.pass(8 * time.Minute) // 12:41, a minute late: the run begins all the same
	n.wantRules("a", "pg.3/wal 3m0s")
}

func TestScheduleConcurrency(t *testing.T) {
	for _, tt := range []struct {
		how  faultpolicy.Concurrency
		want string
		said EventType
	}{{faultpolicy.Forbid, "pg.1/wal 5m0s", EventSkipped}, {faultpolicy.Replace, "pg.2/wal 15m0s", EventActivated}} {
		n := newNode(t)
		n.run("a")
		n.apply(pg(scheduled(tt.how, 15*time.Minute)))
		n.pass(10 * time.Minute)
		n.wantRules("a", "pg.1/wal 15m0s")
		n.types()
		n.pass(10 * time.Minute)
		n.wantRules("a", tt.want)
		if got := n.types(); !slices.Contains(got, tt.said) {
			t.Errorf("%s: events %v", tt.how, got)
		}
	}
}

func TestScheduleAndAClockThatIsSetBack(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.apply(pg(scheduled("", time.Minute)))
	n.now = n.now.Add(-24 * time.Hour)
	n.tick()
	if st := n.phase("pg", Waiting); !st.Next.Equal(start.Add(-24*time.Hour + 10*time.Minute)) {
		t.Errorf("it is due at %v", st.Next)
	}
}

// TestTriggerOfARun: delay and pulses of the policy are those of the run, for a
// container that comes later too; those of a fault are the container's own.
func TestTriggerOfARun(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.apply(pg(func(s *faultpolicy.Spec) {
		s.Timing.Delay, s.Timing.Active, s.Timing.Idle = faultpolicy.Duration(time.Minute), faultpolicy.Duration(10*time.Second), faultpolicy.Duration(20*time.Second)
		s.Faults = append(s.Faults,
			faultpolicy.Fault{Name: "own", Rule: "io error=EIO op=read path=/data/** delay=30s ttl=2m"},
			faultpolicy.Fault{Name: "short", Rule: "io error=EIO op=write path=/data/** ttl=5m"})
	}))
	n.pass(75 * time.Second) // 15 s into the pulses, in a rest
	// The container got its rules when the run began; another one is new.
	had := func(string, uint64, string) time.Time { return start }
	rules, _, _ := n.s.Rules(Key{"default", "a"}, had)
	if len(rules) != 3 {
		t.Fatalf("rules %v", rules)
	}
	texts := []string{rules[0].Text, rules[1].Text, rules[2].Text}
	wal, own, short := rules[0].Trigger, rules[1].Trigger, rules[2].Trigger
	if wal.Delay != -15*time.Second || wal.Active != 10*time.Second || wal.TTL != 8*time.Minute+45*time.Second {
		t.Errorf("the trigger of the run is %+v", wal)
	}
	if own.Delay != 0 || own.Active != 0 || own.TTL != 45*time.Second {
		t.Errorf("the fault's own trigger is %+v", own)
	}
	if short.Delay != -15*time.Second || short.TTL != 3*time.Minute+45*time.Second {
		t.Errorf("the run's pulses with a ttl of the fault are %+v", short)
	}
	rules, _, _ = n.s.Rules(Key{"default", "a"}, nil)
	if own := rules[1].Trigger; own.Delay != 30*time.Second || own.TTL != 2*time.Minute {
		t.Errorf("the fault's own trigger in a container that is new is %+v", own)
	}
	if got := []string{rules[0].Text, rules[1].Text, rules[2].Text}; !slices.Equal(got, texts) {
		t.Errorf("the texts are %q, then %q", texts, got)
	}
	if rules[0].Trigger.Seed == rules[1].Trigger.Seed {
		t.Error("two faults draw alike")
	}
	n.pass(8*time.Minute + 40*time.Second) // 5 s are left
	rules, _, _ = n.s.Rules(Key{"default", "a"}, nil)
	if own := rules[1].Trigger; own.TTL != 5*time.Second {
		t.Errorf("a fault outlives its run: %+v", own)
	}
}

// TestRunIsTheClock: what is due happens by itself while Run runs, and nothing is left of Run.
func TestRunIsTheClock(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		booted := time.Now().Add(-time.Hour)
		var ended []string
		s, err := Open(dir, Options{
			Clock: &Clock{Now: time.Now, Boot: func() time.Duration { return time.Since(booted) }, BootID: "x"},
			Event: func(e Event) { ended = append(ended, string(e.Type)+" "+e.Policy) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		n := &node{t: t, s: s, now: time.Now()}
		n.run("a")
		n.apply(pg(func(s *faultpolicy.Spec) { s.Selector.MinAge = faultpolicy.Duration(40 * time.Second) }))
		n.apply(named("cron", pg(scheduled("", 2*time.Minute))))
		n.wantRules("a")
		time.Sleep(41 * time.Second)
		synctest.Wait()
		n.wantRules("a", "pg.1/wal 9m59s")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		n.phase("pg", Ended)
		n.phase("cron", Running)
		n.must(n.s.Delete("pg", "root"))
		time.Sleep(time.Hour)
		cancel()
		<-done
		if !slices.Contains(ended, "ended pg") || !slices.Contains(ended, "ended cron") {
			t.Errorf("events %v", ended)
		}
	})
}
