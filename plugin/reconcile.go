package plugin

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/limits"
)

const (
	workers       = 16
	lookupTimeout = 5 * time.Second
	listTimeout   = 5 * time.Second
	// maxAttempts bounds how often a graft of one task is tried; the pause between doubles from the first.
	maxAttempts       = 6
	defaultFirstRetry = 500 * time.Millisecond
)

// errGone: containerd has no such container. errSandbox: it is a pause container.
var (
	errGone    = errors.New("no such container")
	errSandbox = errors.New("a pause container: it runs no program of the pod; name a container of the pod instead")
)

// lookup asks containerd for a container and its task.
type lookup interface {
	Lookup(ctx context.Context, k Key) (Container, error)
}

// reconciler brings every container to what its labels ask for. Its sources
// only say "look at this one"; what is done depends on nothing but the labels,
// the grafts that are there and what was applied to the task before.
type reconciler struct {
	grafter Grafter
	faults  *kernelFaults
	lookup  lookup
	// imageLabels gives the labels of an image itself, or errNoImage; nil: images are not asked.
	imageLabels func(ctx context.Context, namespace, image string) (map[string]string, error)
	memory      *memory
	metrics     *metrics
	ledger      *faultLedger
	log         *slog.Logger
	stateDir    string
	// policies are those of the node; nil: it has none.
	policies *policySide
	// places are the containers that have faults, of which the limits allow so many.
	places   limits.Account[Key]
	settings atomic.Pointer[settings]
	// check looks at a container's first process: when it started, or why it must not be touched.
	check func(pid int) (start uint64, err error)
	// blind: the memory was lost, so that a task without an entry may have grafts all the same.
	blind bool
	now   func() time.Time

	// firstRetry is the pause before the second attempt, and before a look at a graft that somebody else is changing.
	firstRetry time.Duration
	queue      *queue

	mu      sync.Mutex
	records map[Key]*record
}

type record struct {
	c Container
	// known: c was filled in by NRI or by containerd, and it is no pause container.
	known bool
	// stale: ask containerd before the next reconcile.
	stale bool
	// version counts what the sources said, so that a slow answer of containerd does not undo news.
	version int
	// attempts counts failed grafts of this task.
	attempts int
	// told are the policies, with their runs, that were said to be in place or on their way there.
	told map[string]uint64
	// doing is what a run of the loop is at; empty: nothing.
	doing State
	// announced is the task that the container's runtime spoke of.
	announced announced
	// unseen is why containerd could not be asked; nil: the last look-up worked.
	unseen error
}

// open makes r ready; its work gets ctx.
func (r *reconciler) open(ctx context.Context, s *settings) {
	r.records = map[Key]*record{}
	r.queue = newQueue(ctx, workers, r.reconcile)
	r.settings.Store(s)
	r.faults.ended = r.kernelFaultEnded
	r.faults.counted = r.ledger.kernelEnded
}

// observe takes a container as NRI describes it. The channel is closed when the
// container has been brought to its labels; nil: it has none and needs nothing.
func (r *reconciler) observe(c Container, urgent bool) <-chan struct{} {
	if !r.settings.Load().watches(c.Namespace) {
		return nil
	}
	r.mu.Lock()
	rec := r.records[c.Key]
	if rec == nil {
		rec = r.add(c.Key)
	}
	r.take(rec, c)
	rec.stale = false
	rec.version++
	needs := hasRules(c.Labels) || rec.c.State != StateNone
	r.mu.Unlock()
	if asks := r.wanted(c); !needs && !asks {
		return nil
	}
	return r.queue.add(c.Key, urgent)
}

// take puts a source's description into a record and leaves the outcome as it is; r.mu is held.
func (r *reconciler) take(rec *record, c Container) {
	old := rec.c
	if old.PID == c.PID {
		c.StartTime = old.StartTime
	} else {
		rec.attempts = 0
	}
	c.Required, c.unmet, c.refusals, c.PauseMs = old.Required, old.unmet, old.refusals, old.PauseMs
	c.State, c.Reason, c.Since, c.Problems, c.Protected = old.State, old.Reason, old.Since, old.Problems, old.Protected
	rec.c = c
	if !rec.known {
		rec.known = true
		r.metrics.seen.WithLabelValues(c.Source).Inc()
	}
}

// poke says that something has happened to a container that containerd knows
// best. The channel is closed when it has been looked at.
func (r *reconciler) poke(k Key) <-chan struct{} {
	if !r.settings.Load().watches(k.Namespace) {
		done := make(chan struct{})
		close(done)
		return done
	}
	r.mu.Lock()
	rec := r.records[k]
	if rec == nil {
		rec = r.add(k)
	}
	rec.stale = true
	r.mu.Unlock()
	return r.queue.add(k, false)
}

// ended says that a container's task has exited. pid 0: whichever it was.
func (r *reconciler) ended(k Key, pid int) {
	r.mu.Lock()
	rec := r.records[k]
	if rec == nil || pid != 0 && rec.c.PID != 0 && rec.c.PID != pid {
		r.mu.Unlock()
		return
	}
	rec.c.PID, rec.c.StartTime, rec.attempts = 0, 0, 0
	rec.version++
	r.mu.Unlock()
	r.queue.add(k, false)
}

// remove forgets a container that was deleted.
func (r *reconciler) remove(k Key) {
	r.mu.Lock()
	delete(r.records, k)
	r.mu.Unlock()
	r.forget(k)
	r.lookAt(r.places.Give(k))
	if r.policies != nil {
		r.policies.store.Forget(policies.Key(k))
	}
	faults := r.faults.where(func(f *liveFault) bool { return f.target.Namespace == k.Namespace && f.target.ID == k.ID })
	if err := r.faults.disarmAll(faults, endTask); err != nil {
		r.log.Error("kernel faults of a container that was deleted", "container", k.String(), "err", err)
	}
}

// retain pokes what is known in a namespace and is not in the list, as after a lost connection.
func (r *reconciler) retain(namespace string, listed map[Key]bool) {
	r.mu.Lock()
	var lost []Key
	for k := range r.records {
		if k.Namespace == namespace && !listed[k] {
			lost = append(lost, k)
		}
	}
	r.mu.Unlock()
	for _, k := range lost {
		r.poke(k)
	}
}

// add makes a record; r.mu is held.
func (r *reconciler) add(k Key) *record {
	rec := &record{c: Container{Key: k, Name: k.ID, State: StateNone, Since: r.now()}}
	r.records[k] = rec
	return rec
}

// containers is a copy of all that is known, in the order of their names.
func (r *reconciler) containers() []Container {
	r.mu.Lock()
	out := make([]Container, 0, len(r.records))
	for _, rec := range r.records {
		if rec.known {
			c := rec.c
			if rec.doing != "" {
				c.State = rec.doing
			}
			out = append(out, c)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(out, func(a, b Container) int {
		return strings.Compare(a.Namespace+"/"+a.DisplayName()+"/"+a.ID, b.Namespace+"/"+b.DisplayName()+"/"+b.ID)
	})
	return out
}

// kernelFaults lists the kernel faults, those that were found in the kernel with
// the name of the container whose cgroup they are in.
func (r *reconciler) kernelFaults() []KernelFault {
	all := r.faults.list()
	var known []Container
	for i, f := range all {
		if f.Target.PID != 0 || f.Target.Namespace != "" {
			continue
		}
		if known == nil {
			known = r.containers()
		}
		for _, c := range known {
			// The names of cgroups have the container's id in them, whichever driver made them.
			if strings.Contains(f.Kernel.Cgroup.Path, c.ID) {
				all[i].Target = c.Target()
			}
		}
	}
	return all
}

// reconcile is one run of the loop for one container.
func (r *reconciler) reconcile(ctx context.Context, k Key) {
	begin := time.Now()
	c, ok := r.current(ctx, k)
	if !ok {
		return
	}
	set := r.settings.Load()
	result := policy.Result{}
	if hasRules(c.Labels) {
		fromImage, err := r.rulesOfImage(ctx, &c)
		if err != nil {
			r.log.Warn("cannot look at the labels of a container's image", "container", k.String(), "image", c.Image, "err", err)
			r.metrics.problems.WithLabelValues("lookup").Inc()
			r.again(k, err)
			return
		}
		result = allowedRules(&c, &set.limits, fromImage)
	}
	pid := c.PID
	r.examine(&c)
	asked := r.ask(&c, result)
	if r.holdBack(&c, &asked) {
		return // a run comes when they are
	}
	result.Problems = append(result.Problems, r.unknownPolicies(&c, result.Policies)...)
	result.Rules = append(result.Rules, asked.rules...)
	c.Required, c.unmet = asked.required, asked.reasons
	r.begin(&c, asked)
	out := r.bring(ctx, &c, result)
	r.givePlace(&c, out)
	r.store(pid, c, out, result.Problems)
	r.report(&c, asked, out)
	if hasRules(c.Labels) || len(asked.rules) > 0 {
		r.metrics.reconcile.Observe(time.Since(begin).Seconds())
	}
}

// current gives the container as it is now, asking containerd if something has
// happened to it; false: there is nothing to do.
func (r *reconciler) current(ctx context.Context, k Key) (Container, bool) {
	r.mu.Lock()
	rec := r.records[k]
	if rec == nil {
		r.mu.Unlock()
		return Container{}, false
	}
	c, stale, version := rec.c, rec.stale, rec.version
	rec.stale = false
	r.mu.Unlock()
	if !stale {
		return c, true
	}
	lctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	found, err := r.lookup.Lookup(lctx, k)
	cancel()
	switch {
	case errors.Is(err, errGone), errors.Is(err, errSandbox):
		r.remove(k)
		return Container{}, false
	case err != nil:
		r.log.Warn("cannot look a container up", "container", k.String(), "err", err)
		r.metrics.problems.WithLabelValues("lookup").Inc()
		r.again(k, err)
		return Container{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec = r.records[k]; rec == nil {
		return Container{}, false
	}
	rec.unseen = nil
	found.PID = rec.announced.of(found.PID)
	if rec.version != version { // it may be older than what was said meanwhile
		if rec.c.Source != sourceNRI {
			rec.stale = true
			r.queue.add(k, false)
			return Container{}, false
		}
		return rec.c, true
	}
	if rec.c.Source == sourceNRI { // NRI said the same of a CRI container, and CRI does not change it later
		pid := found.PID
		found = rec.c
		found.PID = pid
	}
	r.take(rec, found)
	return rec.c, true
}

// examine looks at a container's first process: it fills in when that started and
// why it must not be touched, or finds that the task has ended.
func (r *reconciler) examine(c *Container) {
	c.Protected, c.ended = r.protected(c), false
	if c.PID == 0 {
		c.StartTime = 0
		return
	}
	start, err := r.check(c.PID)
	if err != nil && start == 0 {
		c.PID, c.StartTime, c.ended = 0, 0, true
		return
	}
	c.StartTime = start
	if err != nil && c.Protected == "" {
		c.Protected = err.Error()
	}
}

// at says what a run of the loop is doing to a container.
func (r *reconciler) at(c *Container, doing State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec := r.records[c.Key]; rec != nil {
		rec.doing = doing
	}
}

// protected says why a container must not be touched, from what it is; check says so from what its process is.
func (r *reconciler) protected(c *Container) string {
	if err := r.settings.Load().limits.Protects(c.limited()); err != nil {
		return err.Error()
	}
	return ""
}
