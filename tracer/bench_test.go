package tracer_test

import (
	"fmt"
	"testing"
	"time"
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
