package plugin

import (
	"context"
	"sync"
	"time"
)

// queue runs one function for keys, one run at a time for a key and a bounded
// number in all. A key that is added while it runs runs once more afterwards.
type queue struct {
	work func(context.Context, Key)
	slot chan struct{}
	ctx  context.Context
	wg   sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	entries map[Key]*entry
}

type entry struct {
	pending bool
	urgent  chan struct{} // closed: the next run waits for no slot
	hurried bool
	waiters []chan struct{} // closed when the next run has ended
}

// newQueue makes a queue whose runs get ctx.
func newQueue(ctx context.Context, workers int, work func(context.Context, Key)) *queue {
	return &queue{work: work, slot: make(chan struct{}, workers), ctx: ctx, entries: map[Key]*entry{}}
}

// add asks for a run that starts from now on; the channel is closed when it has
// ended. An urgent run waits for no slot, only for a run of the same key.
func (q *queue) add(k Key, urgent bool) <-chan struct{} {
	done := make(chan struct{})
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		close(done)
		return done
	}
	e := q.entries[k]
	if e == nil {
		e = &entry{urgent: make(chan struct{})}
		q.entries[k] = e
		q.wg.Add(1)
		go q.run(k, e)
	}
	e.pending = true
	e.waiters = append(e.waiters, done)
	if urgent && !e.hurried {
		e.hurried = true
		close(e.urgent)
	}
	return done
}

// addAfter asks for a run some time from now.
func (q *queue) addAfter(k Key, d time.Duration) {
	time.AfterFunc(d, func() { q.add(k, false) })
}

func (q *queue) run(k Key, e *entry) {
	defer q.wg.Done()
	for {
		q.mu.Lock()
		if !e.pending {
			delete(q.entries, k)
			q.mu.Unlock()
			return
		}
		urgent := e.urgent
		q.mu.Unlock()
		held := false
		select {
		case <-urgent:
		case <-q.ctx.Done():
		case q.slot <- struct{}{}:
			held = true
		}
		q.mu.Lock()
		waiters := e.waiters
		e.waiters, e.pending = nil, false
		if e.hurried {
			e.hurried, e.urgent = false, make(chan struct{})
		}
		q.mu.Unlock()
		if q.ctx.Err() == nil {
			q.work(q.ctx, k)
		}
		if held {
			<-q.slot
		}
		for _, w := range waiters {
			close(w)
		}
	}
}

// close takes no more keys; wait then returns when all runs have ended.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
}

func (q *queue) wait() { q.wg.Wait() }
