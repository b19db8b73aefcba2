package tracer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
)

// BenchmarkPause reports how long a target is stopped, to and fro, by files and
// threads.
func BenchmarkPause(b *testing.B) {
	for _, threads := range []int{1, 64} {
		for _, files := range []int{10, 100, 1000} {
			b.Run(fmt.Sprintf("files=%d/threads=%d", files, threads), func(b *testing.B) {
				at := newPlace(b)
				p := start(b, "target", "files", at.a, fmt.Sprint(files), fmt.Sprint(threads))
				s := newSwapper(b, at, p.pid())
				var there, back, prepare time.Duration
				for b.Loop() {
					r := swap(b, s.forward())
					there += r.Pause
					prepare += r.Prepare
					back += swap(b, s.backward()).Pause
					s.drop()
				}
				ms := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(b.N) }
				b.ReportMetric(ms(there), "ms-pause")
				b.ReportMetric(ms(back), "ms-pause-back")
				b.ReportMetric(ms(prepare), "ms-prepare")
				b.ReportMetric(0, "ns/op")
				p.check()
				p.quit()
			})
		}
	}
}

// BenchmarkProcesses reports how long many processes that share no description
// are stopped: all in all, and the longest of them.
func BenchmarkProcesses(b *testing.B) {
	at := newPlace(b)
	var all []*process
	var pids []int
	for i := range 50 {
		dir := filepath.Join(at.a, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		p := start(b, "target", "files", dir, "30", "1")
		all, pids = append(all, p), append(pids, p.pid())
	}
	s := newSwapper(b, at, 0)
	list := func() ([]int, error) { return pids, nil }
	var there, back, longest time.Duration
	for b.Loop() {
		o := s.forward()
		o.Processes = list
		r := swap(b, o)
		there += r.Pause
		longest += longestPause(r)
		o = s.backward()
		o.Processes = list
		back += swap(b, o).Pause
		s.drop()
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(b.N) }
	b.ReportMetric(ms(there), "ms-pause")
	b.ReportMetric(ms(longest), "ms-longest")
	b.ReportMetric(ms(back), "ms-pause-back")
	b.ReportMetric(0, "ns/op")
	for _, p := range all {
		p.check()
		p.quit()
	}
}

func longestPause(r *tracer.Report) (d time.Duration) {
	for _, p := range r.Processes {
		d = max(d, p.Pause)
	}
	return d
}
