package fusefs

import (
	"hash/fnv"
	"io"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/faultgraft/faultgraft/policy"
)

// draw is what one rule has drawn for a request, as the ledger keeps it: the number under which the rule counted the
// request, from which all else follows (policy.Counter), and how far the request had come with it. A request that comes again
// is not counted again, meets the same fault, and waits for what is left.
type draw struct {
	rule          uint64 // liveRule.id
	n             uint64
	at            int64 // when it was drawn, ns since the epoch
	since, length int64 // of the wait that it has come to, ns
	kind          uint32
	fired         bool
	recorded      bool
}

// The waits of a rule, in their order.
const (
	waitThrottle uint32 = iota + 1
	waitLatency
)

// ruleID names a rule to another process that has the same.
func ruleID(r *policy.Rule) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, r.FullName()+"\x00"+r.Text) // never fails
	return h.Sum64()
}

// fire is policy.Counter.Fire for a request that may come again: at is when it was counted, and the draw is nil where it is not booked.
func (l *Layer) fire(q *request, r *liveRule) (n uint64, at time.Time, d *draw, fire bool) {
	s := l.ledger.slot(q.header)
	if d := s.drawnBy(q.header, r.id); d != nil {
		return d.n, time.Unix(0, d.at), d, d.fired
	}
	at = time.Now()
	n, fire = r.counter.Fire(at, q.bytes())
	return n, at, s.drew(q.header, draw{rule: r.id, n: n, at: at.UnixNano(), fired: fire}), fire
}

// drawnBy is what a rule had drawn in a server before this one.
func (s *ledgerSlot) drawnBy(h *fuse.InHeader, rule uint64) *draw {
	if s == nil || !resent(h) || s.unique.Load() != h.Unique&^resentMark {
		return nil
	}
	for i := range s.drawn[:min(s.draws, maxDraws)] {
		if s.drawn[i].rule == rule {
			return &s.drawn[i]
		}
	}
	return nil
}

// drew books a draw.
func (s *ledgerSlot) drew(h *fuse.InHeader, d draw) *draw {
	if s == nil {
		return nil
	}
	s.book(h)
	if s.draws >= maxDraws {
		return nil
	}
	s.drawn[s.draws] = d
	s.draws++
	return &s.drawn[s.draws-1]
}

// rest tells how long a request has to wait that has waited in a server before this one, and how long it has; all of it if it has not.
func (d *draw) rest(kind uint32, now time.Time) (left, had time.Duration, begun bool) {
	switch {
	case d == nil || d.kind < kind:
		return 0, 0, false
	case d.kind > kind: // it is over
		return 0, 0, true
	}
	left = time.Duration(min(max(d.since+d.length-now.UnixNano(), 0), d.length)) // whatever somebody did to the clock
	return left, time.Duration(d.length) - left, true
}

// waits books the begin of a wait.
func (d *draw) waits(kind uint32, now time.Time, length time.Duration) {
	if d != nil {
		d.since, d.length = now.UnixNano(), int64(length)
		d.kind = kind
	}
}

// report reports whether the event is still to be recorded.
func (d *draw) report() bool {
	if d == nil {
		return true
	}
	was := d.recorded
	d.recorded = true
	return !was
}
