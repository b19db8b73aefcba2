package fusefs

import (
	"sync"
	"time"
)

// ended says how a wait came to its end.
type ended int

const (
	served      ended = iota // it lasted as long as the rule says
	interrupted              // a signal came: what hangs is answered with EINTR, what is only slow waits no longer
	ruleOver                 // the rule is gone, or let go of it: the operation goes on as if there had been no rule
)

// wait makes the operation wait as the rule says and writes to the event what
// came of it. It holds no lock, and ends at once when a signal comes or the
// rule ends.
func (l *Layer) wait(q *request, r *liveRule, c *change) ended {
	f, e := r.IO, &c.event
	if f.Throttle != nil {
		e.Action = ActionThrottle
		how := r.sleep(q, c, waitThrottle, func() time.Duration { return r.bucket.take(e.Time, q.bytes()) })
		if how != served {
			r.bucket.putBack(q.bytes())
			return how
		}
	}
	if f.Latency != nil {
		e.Action = ActionLatency
		d := f.Latency.Draw(c.src)
		if how := r.sleep(q, c, waitLatency, func() time.Duration { return d }); how != served {
			return how
		}
	}
	if f.Hang {
		e.Action = ActionHang
		return r.hangs(q, e)
	}
	return served
}

// sleep waits for a time and adds it to the event's latency; for what is left of it if the request has waited before.
func (r *liveRule) sleep(q *request, c *change, kind uint32, length func() time.Duration) ended {
	e := &c.event
	start := time.Now()
	d, had, begun := c.draw.rest(kind, start)
	if !begun {
		d = length()
		c.draw.waits(kind, start, d)
	}
	e.Latency += had
	if d <= 0 {
		return served
	}
	t := time.NewTimer(d)
	defer t.Stop()
	how := served
	select {
	case <-t.C:
		e.Latency += d
		return served
	case <-q.cancel:
		how = interrupted
	case <-r.over:
		how = ruleOver
	}
	e.Latency, e.Cut = e.Latency+time.Since(start), true
	return how
}

// hangTable holds what hangs under one rule.
type hangTable struct {
	mu    sync.Mutex
	count int
	letGo chan struct{} // closed and replaced when what hangs is released
}

// hangs waits until something ends it.
func (r *liveRule) hangs(q *request, e *Event) ended {
	t := &r.hung
	t.mu.Lock()
	if t.letGo == nil {
		t.letGo = make(chan struct{})
	}
	letGo := t.letGo
	t.count++
	t.mu.Unlock()
	start := time.Now()
	how := ruleOver
	select {
	case <-letGo:
	case <-r.over:
	case <-q.cancel:
		how = interrupted
	}
	e.Latency, e.Cut = e.Latency+time.Since(start), true
	t.mu.Lock()
	if t.letGo == letGo {
		t.count--
	}
	t.mu.Unlock()
	return how
}

// release lets go of what hangs now.
func (t *hangTable) release() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.count
	if n > 0 {
		close(t.letGo)
		t.letGo, t.count = nil, 0
	}
	return n
}

// ReleaseHung lets the operations go on that hang under the rule of this full name,
// or under any rule if it is empty, as if there had been no rule, and tells how
// many there were. What comes later hangs again.
func (l *Layer) ReleaseHung(rule string) int {
	n := 0
	for _, r := range l.rules.Load().rules {
		if rule == "" || r.FullName() == rule {
			n += r.hung.release()
		}
	}
	return n
}
