package hooks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultTimeout bounds a hook: the runtime waits for it.
const DefaultTimeout = 5 * time.Second

// Injector grafts; *keeper.Client does.
type Injector interface {
	Inject(ctx context.Context, t keeper.Target, req keeper.Request) (keeper.Graft, error)
}

// Options are what Run works with.
type Options struct {
	// Input is where the runtime writes the container's state.
	Input io.Reader
	// Agent, if there is one, does the work for containerd's containers; nil, or
	// ErrNoAgent from it: the hook does it.
	Agent Agent
	// Rules are those that the hook itself brings, by the keys that annotations with
	// them would have; an annotation of the same key comes before.
	Rules map[string]string
	// Injector makes the grafts.
	Injector Injector
	// Kernel arms kernel rules: all, or none. Nil: nobody can here.
	Kernel func(ctx context.Context, t keeper.Target, rules []policy.Rule) error
	// Record takes a refusal for the event log; its error is added to the result. Must be set.
	Record func(keeper.Event) error
	// Seed gives a rule a seed that has none. Must be set.
	Seed func() uint64
	// Defaults fill and bound the rules.
	Defaults policy.Defaults
	// Timeout bounds the whole; 0 means DefaultTimeout.
	Timeout time.Duration
}

// Result is what a hook came to.
type Result struct {
	// Container is its id; empty when the state could not be read.
	Container string
	// Grafts are the layers that are on.
	Grafts []keeper.Graft
	// InForce are the ids of the faults that the agent says are in force.
	InForce []string
	// Refused: the container must not start. Nil: it may.
	Refused error
	// Problems are annotations that were refused and grafts that could not be made.
	Problems []error
}

// Run does the work of a poststart hook. Rules over different paths do not
// depend on each other: what can be grafted is. When the time is up it returns
// what is done so far; a keeper that is at work then finishes or undoes its
// graft by itself.
func Run(ctx context.Context, o Options) Result {
	timeout := o.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := run{o: o}
	state, err := within(ctx, "reading the container's state", func() (*specs.State, error) { return ReadState(o.Input) })
	if err != nil {
		r.refuse(keeper.Event{}, err)
		return r.Result
	}
	r.Container = state.ID
	r.event = keeper.Event{Target: state.ID}
	r.container(ctx, state)
	return r.Result
}

type run struct {
	Result
	o Options
	// event is the start of all events of this container.
	event keeper.Event
}

func (r *run) container(ctx context.Context, state *specs.State) {
	annotations, err := within(ctx, "reading the bundle's config.json", func() (map[string]string, error) { return Annotations(state) })
	if err != nil {
		r.refuse(r.event, err)
		return
	}
	r.event.Name = containerName(annotations)
	if isSandbox(annotations) || r.agent(ctx, state) {
		return
	}
	for key, text := range r.o.Rules {
		if _, ok := annotations[key]; !ok {
			annotations[key] = text
		}
	}
	parsed := policy.ParseLabels(policy.Subject{Labels: annotations, ContainerName: r.event.Name, Kind: "annotation"}, r.o.Defaults)
	for _, p := range parsed.Problems {
		e := r.event
		e.Rule = p.Source
		r.refuse(e, p)
	}
	if len(parsed.Rules) == 0 {
		return // nothing asked for, or enable.faultgraft.io=false
	}
	if err := ownMounts(state.Pid); err != nil {
		r.refuse(r.event, err)
		return
	}
	for i := range parsed.Rules {
		parsed.Rules[i].EnsureSeed(r.o.Seed)
	}
	target := keeper.Target{ID: state.ID, Name: r.event.Name, PID: state.Pid, Labels: annotations}
	r.armKernel(ctx, target, parsed.Rules)
	groups := policy.GraftPaths(parsed.Rules)
	for _, path := range slices.Sorted(maps.Keys(groups)) {
		g, err := within(ctx, "grafting", func() (keeper.Graft, error) {
			return r.o.Injector.Inject(ctx, target, keeper.Request{Path: path, Rules: groups[path], Origin: keeper.OriginAnnotation})
		})
		if err != nil {
			e := r.event
			e.Path = path
			r.refuse(e, fmt.Errorf("%s: not grafted: %w", path, err))
			continue
		}
		r.Grafts = append(r.Grafts, g)
	}
}

// agent has the agent do the work; false: it is the hook's.
func (r *run) agent(ctx context.Context, state *specs.State) bool {
	namespace, ok := ofContainerd(state.Bundle, state.ID)
	if !ok || r.o.Agent == nil {
		return false
	}
	answer, err := within(ctx, "asking the agent", func() (Answer, error) {
		return r.o.Agent.Start(ctx, Task{Namespace: namespace, ID: state.ID, PID: state.Pid, Bundle: state.Bundle})
	})
	switch {
	case errors.Is(err, ErrNoAgent), err == nil && !answer.Known:
		return false
	case err != nil: // it may be at work all the same
		r.refuse(r.event, err)
	case answer.Missing != "" && answer.Required:
		r.Refused = requiredError(state.ID, answer.Missing)
		r.refuse(r.event, r.Refused)
	case answer.Missing != "":
		r.refuse(r.event, errors.New(answer.Missing))
	default:
		r.InForce = answer.Grafts
	}
	return true
}

// armKernel hands kernel rules to who can arm them. The program's first
// instruction comes after that.
func (r *run) armKernel(ctx context.Context, t keeper.Target, rules []policy.Rule) {
	rules = slices.DeleteFunc(slices.Clone(rules), func(rule policy.Rule) bool { return rule.Kernel == nil })
	if len(rules) == 0 {
		return
	}
	_, err := within(ctx, "arming kernel faults", func() (struct{}, error) {
		if r.o.Kernel == nil {
			return struct{}{}, errors.New("kernel rules are not possible here")
		}
		return struct{}{}, r.o.Kernel(ctx, t, rules)
	})
	if err != nil {
		r.refuse(r.event, fmt.Errorf("kernel rules: not armed: %w", err))
	}
}

// ownMounts refuses a container that has no mount namespace of its own: others would see its layers.
func ownMounts(pid int) error {
	t, err := graft.CheckTarget(pid)
	if err != nil {
		return err
	}
	if t.Tree {
		return fmt.Errorf("pid %d: refused: the container shares the mount namespace of the host, whose other processes would see the layer; give it one of its own (linux.namespaces in config.json)", pid)
	}
	return nil
}

// refuse takes down what is not done.
func (r *run) refuse(e keeper.Event, err error) {
	e.Type, e.Message = keeper.EventRefused, err.Error()
	r.Problems = append(r.Problems, err)
	if err := r.o.Record(e); err != nil {
		r.Problems = append(r.Problems, fmt.Errorf("not in the event log: %w", err))
	}
}

// within runs f until ctx ends. f then goes on in the background: it waits for
// something that cannot be interrupted, such as a lock or a read.
func within[T any](ctx context.Context, what string, f func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	a := answer{err: ctx.Err()} // nothing is begun after the time is up
	if a.err == nil {
		go func() {
			v, err := f()
			done <- answer{v, err}
		}()
		select {
		case a = <-done:
		case <-ctx.Done():
			a.err = ctx.Err()
		}
	}
	if a.err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		a.err = fmt.Errorf("%s took too long, and the runtime was not to wait any longer; see faultgraft ps: %w", what, a.err)
	}
	return a.value, a.err
}
