package plugin

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func testQueue(t *testing.T, slots int, work func(context.Context, Key)) *queue {
	ctx, cancel := context.WithCancel(t.Context())
	q := newQueue(ctx, slots, work)
	t.Cleanup(func() {
		q.close()
		cancel()
		q.wait()
	})
	return q
}

func wait(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(30 * time.Second):
		t.Fatal(what)
	}
}

func TestQueueRunsAKeyOnceAtATime(t *testing.T) {
	var now, most, runs atomic.Int32
	q := testQueue(t, 8, func(context.Context, Key) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(time.Millisecond)
		runs.Add(1)
		now.Add(-1)
	})
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() { wait(t, "a run never ended", q.add(Key{"a", "a"}, i%2 == 0)) })
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d runs of one key at a time", most.Load())
	}
	if n := runs.Load(); n < 1 || n > 64 {
		t.Errorf("%d runs", n)
	}
}

func TestQueueRunsAgainAfterNews(t *testing.T) {
	var runs atomic.Int32
	started, release := make(chan struct{}, 2), make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	q := testQueue(t, 1, func(context.Context, Key) {
		runs.Add(1)
		started <- struct{}{}
		<-release
	})
	defer free()
	first := q.add(Key{"a", "a"}, false)
	<-started
	second := q.add(Key{"a", "a"}, false) // came while the first run may have looked already
	third := q.add(Key{"a", "a"}, false)
	free()
	wait(t, "first", first)
	wait(t, "second", second)
	wait(t, "third", third)
	if runs.Load() != 2 {
		t.Errorf("%d runs, want 2", runs.Load())
	}
}

func TestQueueBoundsRunsButNotUrgentOnes(t *testing.T) {
	var now, most atomic.Int32
	release := make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	q := testQueue(t, 2, func(_ context.Context, k Key) {
		if k.Namespace == "urgent" {
			return
		}
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		<-release
		now.Add(-1)
	})
	defer free()
	var all []<-chan struct{}
	for _, id := range []string{"1", "2", "3", "4"} {
		all = append(all, q.add(Key{"slow", id}, false))
	}
	wait(t, "an urgent run waits for a slot", q.add(Key{"urgent", "1"}, true))
	// One that waits for a slot already becomes urgent.
	q.add(Key{"urgent", "2"}, false)
	wait(t, "a run that became urgent waits for a slot", q.add(Key{"urgent", "2"}, true))
	free()
	for _, c := range all {
		wait(t, "a run never ended", c)
	}
	if most.Load() > 2 {
		t.Errorf("%d runs at a time, want at most 2", most.Load())
	}
}

func TestClosedQueueTakesNothing(t *testing.T) {
	q := testQueue(t, 1, func(context.Context, Key) { t.Error("ran") })
	q.close()
	wait(t, "add waits for a run that never comes", q.add(Key{"a", "a"}, false))
	q.addAfter(Key{"a", "a"}, 0)
	q.wait()
}
