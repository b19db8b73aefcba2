package fusefs

import (
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// withSpan agrees with a model that keeps the type of each byte, and leaves neither overlaps nor neighbours that could be one.
func TestSpansModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 40
		var model [size]int16
		for i := range model {
			model[i] = unix.F_UNLCK
		}
		var spans []span
		for range rapid.IntRange(1, 20).Draw(t, "n") {
			s := span{
				typ:   rapid.SampledFrom([]int16{unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK}).Draw(t, "type"),
				start: rapid.Int64Range(0, size-1).Draw(t, "start"),
			}
			s.end = rapid.Int64Range(s.start, size-1).Draw(t, "end")
			last := s.end
			if last == size-1 {
				s.end = toEnd
			}
			spans = withSpan(spans, s)
			for i := s.start; i <= last; i++ {
				model[i] = s.typ
			}
		}
		var got [size]int16
		for i := range got {
			got[i] = unix.F_UNLCK
		}
		for i, s := range spans {
			for j, o := range spans {
				if i != j && (s.overlaps(o) || s.typ == o.typ && s.end != toEnd && s.end+1 == o.start) {
					t.Fatalf("%+v", spans)
				}
			}
			for b := s.start; b <= min(s.end, size-1); b++ {
				got[b] = s.typ
			}
		}
		if got != model {
			t.Fatalf("%v\n%v", got, model)
		}
	})
}
