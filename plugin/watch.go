package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
)

// topics are the events that the watcher wants, as containerd's filters.
var topics = []string{
	`topic=="/containers/create"`, `topic=="/containers/update"`, `topic=="/containers/delete"`,
	`topic=="/tasks/create"`, `topic=="/tasks/start"`, `topic=="/tasks/exit"`, `topic=="/tasks/delete"`, `topic=="/tasks/oom"`,
}

// relistTimeout bounds the list of all containers after a connect.
const relistTimeout = time.Minute

// connection tells whether a source is connected, and why not.
type connection struct {
	mu    sync.Mutex
	up    bool
	why   string
	gauge interface{ Set(float64) }
}

func (c *connection) set(up bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up, c.why = up, ""
	if err != nil {
		c.why = err.Error()
	}
	c.gauge.Set(map[bool]float64{true: 1}[up])
}

func (c *connection) get() (up bool, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up, c.why
}

// watcher follows containerd's events: the only sight of nerdctl's and ctr's
// containers, which NRI does not know. An event only says which container to look at.
type watcher struct {
	runtime *containerdRuntime
	loop    *reconciler
	state   *connection
	log     *slog.Logger
	// kick ends a session: other namespaces have to be looked at.
	kick <-chan struct{}
}

// errKicked ends a session because the configuration has changed.
var errKicked = errors.New("the configuration has changed")

// run watches until ctx ends, over restarts of containerd.
func (w *watcher) run(ctx context.Context) {
	pause := backoff{max: reconnectMax}
	for ctx.Err() == nil {
		connected, err := w.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errKicked) {
			continue
		}
		if connected {
			pause.reset()
		}
		if up, why := w.state.get(); up || why != err.Error() {
			w.log.Warn("not connected to containerd; will try again", "address", w.runtime.address, "err", err)
		}
		w.state.set(false, err)
		pause.sleep(ctx)
	}
	w.state.set(false, nil)
}

// session subscribes, lists what is there already, and follows events until the connection is lost.
func (w *watcher) session(ctx context.Context) (connected bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	// Subscribed before the list, so that what starts in between is in one of the two. The first answer shows the connection.
	stream, errs := w.runtime.client.Subscribe(ctx, topics...)
	lctx, stop := context.WithTimeout(ctx, lookupTimeout)
	names, err := w.runtime.namespaces(lctx, w.loop.settings.Load().containerdNamespaces)
	stop()
	if err != nil {
		return false, err
	}
	w.state.set(true, nil)
	w.log.Info("connected to containerd", "address", w.runtime.address)
	wg.Go(func() { w.relist(ctx, names) })
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case <-w.kick:
			return true, errKicked
		case err := <-errs:
			if err == nil {
				err = errors.New("the event stream ended")
			}
			return true, fmt.Errorf("containerd's events: %w", err)
		case e := <-stream:
			w.handle(e)
		}
	}
}

// relist looks at every container that is there (and at every one that was, in case it went unseen).
func (w *watcher) relist(ctx context.Context, names []string) {
	ctx, cancel := context.WithTimeout(ctx, relistTimeout)
	defer cancel()
	total := 0
	var looks []<-chan struct{}
	complete := true
	for _, n := range names {
		found, err := w.runtime.ids(ctx, n)
		if err != nil {
			complete = false
			if ctx.Err() == nil {
				w.log.Error("cannot list the containers that are there already; those of this namespace are seen at their next event", "namespace", n, "err", err)
				w.loop.metrics.problems.WithLabelValues("lookup").Inc()
			}
			continue
		}
		listed := map[Key]bool{}
		for _, k := range found {
			listed[k] = true
			total++
			looks = append(looks, w.loop.poke(k))
		}
		w.loop.retain(n, listed)
	}
	for _, done := range looks {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
	if complete {
		w.loop.containersKnown()
	}
	if ctx.Err() == nil {
		w.log.Info("containers that are there already", "source", sourceContainerd, "namespaces", len(names), "containers", total)
	}
}

// handle hands one event to the loop.
func (w *watcher) handle(e *events.Envelope) {
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		w.log.Error("an event of containerd that cannot be read", "topic", e.Topic, "namespace", e.Namespace, "err", err)
		w.loop.metrics.problems.WithLabelValues("event").Inc()
		return
	}
	w.loop.metrics.eventDelay.WithLabelValues(e.Topic).Observe(max(time.Since(e.Timestamp), 0).Seconds())
	key := func(id string) Key { return Key{e.Namespace, id} }
	switch x := v.(type) {
	case *eventtypes.ContainerCreate:
		w.loop.poke(key(x.ID))
	case *eventtypes.ContainerUpdate:
		w.loop.poke(key(x.ID))
	case *eventtypes.ContainerDelete:
		w.loop.remove(key(x.ID))
	case *eventtypes.TaskCreate:
		// The process is there, after pivot_root, and user code has usually not started: no time to lose.
		w.loop.poke(key(x.ContainerID))
	case *eventtypes.TaskStart:
		w.loop.poke(key(x.ContainerID))
	case *eventtypes.TaskExit:
		if x.ID == x.ContainerID { // else: a process that was added by exec
			w.loop.exited(key(x.ContainerID), int(x.Pid), x.ExitStatus, e.Timestamp)
			w.loop.ended(key(x.ContainerID), int(x.Pid))
		}
	case *eventtypes.TaskOOM:
		w.loop.oom(key(x.ContainerID), e.Timestamp)
	case *eventtypes.TaskDelete:
		if x.ID == "" || x.ID == x.ContainerID {
			w.loop.ended(key(x.ContainerID), int(x.Pid))
		}
	}
}

// backoff is the pause between attempts: it doubles from 100 ms, with jitter.
type backoff struct {
	max  time.Duration
	next time.Duration
}

func (b *backoff) reset() { b.next = 0 }

func (b *backoff) sleep(ctx context.Context) {
	b.next = min(max(2*b.next, 100*time.Millisecond), b.max)
	t := time.NewTimer(b.next/2 + rand.N(b.next/2+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
