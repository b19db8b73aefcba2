package policies

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/selection"
)

// The node of issue 6: ten thousand containers and a thousand policies.
const (
	manyContainers = 10_000
	manyPolicies   = 1_000
)

// many is a node whose containers are of apps of ten replicas each, in twenty
// namespaces. Nine of ten policies are for one app; of the others half are for
// images or names by glob, half for all that runs in one of the namespaces. All modes and guards come up.
// wide: every policy is for all containers, and keeps an order of them.
func many(b *testing.B, wide bool) (*node, []selection.Container) {
	b.Helper()
	n := newNode(b)
	containers := make([]selection.Container, 0, manyContainers)
	for i := range manyContainers {
		containers = append(containers, numbered(i))
		n.s.Observe(containers[i])
	}
	modes := []faultpolicy.Mode{faultpolicy.ModeAll, faultpolicy.ModeOne, faultpolicy.ModeFixed, faultpolicy.ModeFixedPercent, faultpolicy.ModeRandomMaxPercent}
	for i := range manyPolicies {
		p := pg(func(s *faultpolicy.Spec) {
			s.Timing.TTL = faultpolicy.Duration(10 * time.Hour)
			s.Mode = modes[i%len(modes)]
			if i%len(modes) > 1 {
				s.Value = 20
			}
			s.Selector = faultpolicy.Selector{MatchLabels: map[string]string{"app": fmt.Sprintf("app%d", i)}}
			switch {
			case wide:
				s.Selector = faultpolicy.Selector{MatchExpressions: []faultpolicy.Requirement{{Key: "app", Operator: faultpolicy.Exists}}}
				s.Mode, s.Value = faultpolicy.ModeFixedPercent, 1
			case i%20 == 0:
				s.Selector = faultpolicy.Selector{Images: []string{fmt.Sprintf("registry.example/app%d*:*", i)}}
			case i%20 == 10:
				s.Selector = faultpolicy.Selector{Namespaces: []string{fmt.Sprintf("ns%d", i%7)}}
				s.Guard.MaxContainers = 50
			}
		})
		n.apply(named(fmt.Sprintf("p%d", i), p))
	}
	return n, containers
}

// processor is the processor time of this process.
func processor(b *testing.B) time.Duration {
	b.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func numbered(i int) selection.Container {
	app := fmt.Sprintf("app%d", i/10)
	return selection.Container{
		Namespace: fmt.Sprintf("ns%d", i%20), ID: fmt.Sprintf("%064x", i), Name: fmt.Sprintf("%s-%d", app, i%10),
		Image:  fmt.Sprintf("registry.example/%s:1.0", app),
		Labels: map[string]string{"app": app, "tier": "backend", "io.kubernetes.container.name": app, "team": "storage"}, Started: start,
	}
}

// BenchmarkScale measures a node of ten thousand containers and a thousand
// policies; `make bench` prints it. Times are of the processor, so that other programs do not count. Units: ms for one new container (it is seen
// and its rules are made), ms for all containers once more, ms for an agent that starts with them, MiB of memory that it all keeps.
func BenchmarkScale(b *testing.B) {
	for _, shape := range []string{"usual", "wide"} {
		b.Run(shape, func(b *testing.B) {
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			n, containers := many(b, shape == "wide")
			runtime.GC()
			runtime.ReadMemStats(&after)

			next := manyContainers
			var one, all, fresh time.Duration
			var rules int
			for b.Loop() {
				begin := processor(b)
				const some = 100
				for range some {
					c := numbered(next)
					next++
					n.s.Observe(c)
					n.s.Rules(Key{c.Namespace, c.ID}, nil)
				}
				one += (processor(b) - begin) / some
				for i := range some {
					c := numbered(next - 1 - i)
					n.s.Forget(Key{c.Namespace, c.ID})
				}
				begin = processor(b)
				for i := range containers {
					n.s.Observe(containers[i])
					r, _, _ := n.s.Rules(Key{containers[i].Namespace, containers[i].ID}, nil)
					rules += len(r)
				}
				all += (processor(b) - begin)

				begin = processor(b) // an agent that starts: the policies from the file, and all containers
				again, err := Open(n.dir, n.options())
				if err != nil {
					b.Fatal(err)
				}
				for i := range containers {
					again.Observe(containers[i])
				}
				for i := range containers {
					again.Rules(Key{containers[i].Namespace, containers[i].ID}, nil)
				}
				fresh += (processor(b) - begin)
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
			ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 / float64(b.N) }
			b.ReportMetric(ms(one), "ms/container")
			b.ReportMetric(ms(all), "ms/reconcile")
			b.ReportMetric(ms(fresh), "ms/start")
			b.ReportMetric(float64(rules)/float64(b.N), "rules")
			b.ReportMetric(0, "ns/op")
			runtime.KeepAlive(n)
		})
	}
}
