package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
)

// StopReport is what a stop came to.
type StopReport struct {
	keeper.Stopped
	// Reverted are the grafts and kernel faults that were taken off, whoever asked for them.
	Reverted []string `json:"reverted"`
	// Failed are those that could not be taken off yet, with the reason. Their faults
	// have ended, and their keepers try again.
	Failed []keeper.Graft `json:"failed,omitempty"`
	// Forced are those whose keeper did not answer and was killed, with what was done; they are among the reverted or the failed, too.
	Forced []keeper.Graft `json:"forced,omitempty"`
	// Warning is what could not be put on record, of a stop that stands all the same.
	Warning string `json:"warning,omitempty"`
	// TookMs is how long all of it took, milliseconds.
	TookMs float64 `json:"tookMs"`
}

// listWait is how long a stop waits for the list of what there is: what is to end comes first.
const listWait = 500 * time.Millisecond

// endStopped begins why a kernel fault ended that was stopped.
const endStopped = "stopped: "

// stopper takes everything off a node.
type stopper struct {
	stateDir string
	grafter  interface {
		List(ctx context.Context) ([]keeper.Graft, error)
		StopAll(ctx context.Context, reason string) ([]keeper.Graft, error)
	}
	faults *kernelFaults
}

// stop forbids new faults first, and then ends all that there are, side by side.
// The report is there beside an error, which says what may be left.
func (s *stopper) stop(ctx context.Context, reason, by string) (StopReport, error) {
	begin := time.Now()
	mark := keeper.Stopped{Reason: reason, Since: begin, By: by}
	before, err := keeper.ReadStopped(s.stateDir)
	if err == nil && before != nil {
		mark.Grafts = before.Grafts // they are to come back after the release, too
	}
	_ = keeper.WriteStopped(s.stateDir, mark) // a full disk is no reason for a fault to go on; it is tried again below
	atStop.Pass("forbidden")
	// Whoever is killed from here on leaves behind what the release has to bring back.
	lctx, cancel := context.WithTimeout(ctx, listWait)
	there, _ := s.grafter.List(lctx) // who does not answer so soon is on the list of what was taken off, or is an error then
	cancel()
	for _, g := range there {
		if !slices.Contains(mark.Grafts, g.ID) {
			mark.Grafts = append(mark.Grafts, g.ID)
		}
	}
	_ = keeper.WriteStopped(s.stateDir, mark) // as above
	atStop.Pass("listed")
	var wg sync.WaitGroup
	var grafts []keeper.Graft
	var faults []string
	var gerr, kerr error
	wg.Go(func() { grafts, gerr = s.grafter.StopAll(ctx, reason) })
	wg.Go(func() { faults, kerr = s.faults.stopAll(endStopped+reason, by) })
	wg.Wait()
	atStop.Pass("reverted")
	out := StopReport{Reverted: faults}
	for _, g := range grafts {
		if g.Forced {
			out.Forced = append(out.Forced, g)
		}
		if g.State == keeper.StateFailed {
			out.Failed = append(out.Failed, g)
		} else {
			out.Reverted = append(out.Reverted, g.ID)
		}
		if !slices.Contains(mark.Grafts, g.ID) {
			mark.Grafts = append(mark.Grafts, g.ID)
		}
	}
	slices.Sort(out.Reverted)
	out.Stopped, out.TookMs = mark, float64(time.Since(begin))/float64(time.Millisecond)
	unwritten := errors.Join(keeper.WriteStopped(s.stateDir, mark), s.log(keeper.EventStop, by, fmt.Sprintf("%s; %d faults were taken off", reason, len(out.Reverted))))
	if now, err := keeper.ReadStopped(s.stateDir); unwritten != nil && now == nil && err == nil {
		return out, errors.Join(unwritten, gerr, kerr) // there is not even an empty marker
	}
	if unwritten != nil {
		out.Warning = unwritten.Error()
	}
	return out, errors.Join(gerr, kerr)
}

// release lifts the stop; reopen is told the grafts that were taken off for it.
func (s *stopper) release(by string, reopen func(grafts []string) error) (*keeper.Stopped, error) {
	was, err := keeper.ReadStopped(s.stateDir)
	if err == nil && was == nil {
		return nil, ErrNotStopped
	}
	if err != nil {
		was = &keeper.Stopped{Reason: err.Error()} // unreadable: the way out of that is to remove it
	}
	if err := reopen(was.Grafts); err != nil {
		return nil, fmt.Errorf("release this node: %w", err)
	}
	atRelease.Pass("reopened")
	if err := keeper.LiftStopped(s.stateDir); errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotStopped
	} else if err != nil {
		return nil, fmt.Errorf("release this node: %w", err)
	}
	atRelease.Pass("lifted")
	return was, s.log(keeper.EventRelease, by, "was stopped: "+was.Reason)
}

// ErrNotStopped: there is nothing to release.
var ErrNotStopped = errors.New("this node is not stopped")

// ErrNoPolicy: no policy has the name.
var ErrNoPolicy = policies.ErrNotFound

// log writes to the node's event log.
func (s *stopper) log(t keeper.EventType, by, message string) error {
	return keeper.WriteEvent(s.stateDir, keeper.Event{Type: t, Who: by, Message: message})
}

// stopAll ends all faults side by side, also those that nobody holds. It gives their ids.
func (k *kernelFaults) stopAll(why, who string) ([]string, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var ids []string
	var errs []error
	ended := func(id string, err error) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			ids = append(ids, id)
		case !errors.Is(err, ErrNoKernelFault):
			errs = append(errs, err)
		}
	}
	held := k.where(func(*liveFault) bool { return true })
	for _, f := range held {
		wg.Go(func() {
			_, err := k.disarmFor(f.id, why, who)
			ended(f.id, err)
		})
	}
	pinned, err := k.outliving()
	if err != nil {
		errs = append(errs, fmt.Errorf("kernel faults that outlived who armed them: %w", err))
	}
	for _, p := range pinned {
		if slices.ContainsFunc(held, func(f *liveFault) bool { return f.id == p.ID }) {
			continue
		}
		wg.Go(func() {
			_, err := k.endFound(p, why, who)
			ended(p.ID, err)
		})
	}
	wg.Wait()
	return ids, errors.Join(errs...)
}

// Stop stops the node without an agent: no fault starts until it is released, and
// all that there are end. by says who asked for it.
func (d Direct) Stop(ctx context.Context, reason, by string) (r StopReport, err error) {
	k := d.faults()
	defer func() { err = errors.Join(err, k.close()) }()
	return d.stopper(k).stop(ctx, reason, by)
}

// Release lifts a stop without an agent.
func (d Direct) Release(by string) (was *keeper.Stopped, err error) {
	k := d.faults()
	defer func() { err = errors.Join(err, k.close()) }()
	s := d.stopper(k)
	return s.release(by, func(grafts []string) error {
		m, warning, err := loadMemory(s.stateDir, time.Now())
		if err != nil {
			return err
		}
		return errors.Join(warning, m.reopen(grafts)) // for the next agent
	})
}

func (d Direct) stopper(k *kernelFaults) *stopper {
	dir := d.StateDir
	if dir == "" {
		dir = DefaultStateDir
	}
	return &stopper{stateDir: dir, grafter: &keeper.Client{StateDir: dir}, faults: k}
}

// stopped says whether the node is stopped, as the reason of a container's state; empty: it is not.
func (r *reconciler) stopped() string {
	if err := keeper.CheckStopped(r.stateDir); err != nil {
		return err.Error()
	}
	return ""
}

// lookAtAll looks at all containers again.
func (r *reconciler) lookAtAll() {
	r.mu.Lock()
	keys := make([]Key, 0, len(r.records))
	for k := range r.records {
		keys = append(keys, k)
	}
	r.mu.Unlock()
	for _, k := range keys {
		r.queue.add(k, false)
	}
}
