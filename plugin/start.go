package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// startTimeout bounds one request to bring a new task to its rules; the answer has to fit into the socket's write time-out.
const startTimeout = 25 * time.Second

// StartRequest is the body of POST /v1/start: a container whose first process is
// there, with its final mount namespace and cgroup, and runs none of its program
// before the answer.
type StartRequest struct {
	// Namespace and ID are containerd's.
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
	// PID is the container's first process, in the host's PID namespace.
	PID int `json:"pid"`
	// Bundle is the folder of its config.json; for the log.
	Bundle string `json:"bundle,omitempty"`
	// WaitMs is how long the caller waits, milliseconds; 0: it does not say.
	WaitMs int64 `json:"waitMs,omitempty"`
}

// StartAnswer says what has come of the container's rules.
type StartAnswer struct {
	// Known: containerd has a container of that namespace and id, or the agent is not to look at that namespace.
	Known bool `json:"known"`
	// State and Reason are the container's; StateNone: nothing asks for a fault.
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"`
	// Required: a policy asks that the container does not start without its faults.
	Required bool `json:"required,omitempty"`
	// Refused says why the container must not start: Required, and the faults are not all there.
	Refused string `json:"refused,omitempty"`
	// Grafts are the ids of the grafts and kernel faults that are there.
	Grafts []string `json:"grafts,omitempty"`
}

// Start has the agent bring a container to its rules before its program runs,
// and returns when that is done. The caller bounds the wait by ctx.
func (c *Client) Start(ctx context.Context, req StartRequest) (StartAnswer, error) {
	if end, ok := ctx.Deadline(); ok && req.WaitMs == 0 {
		req.WaitMs = max(time.Until(end).Milliseconds(), 1)
	}
	body, err := json.Marshal(req)
	if err != nil {
		return StartAnswer{}, err
	}
	var out StartAnswer
	err = c.ask(ctx, http.MethodPost, "/v1/start", body, &out)
	return out, err
}

// start answers POST /v1/start.
func (s *server) start(w http.ResponseWriter, r *http.Request) {
	var req StartRequest
	if !s.read(w, r, &req) {
		return
	}
	wait := startTimeout
	if req.WaitMs > 0 {
		// Less than the caller waits, so that it hears whether the faults are required.
		wait = min(wait, time.Duration(req.WaitMs)*time.Millisecond*9/10)
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	answer, err := s.loop.start(ctx, req)
	if err != nil {
		s.fail(w, http.StatusConflict, err)
		return
	}
	s.write(w, answer)
}

func (r StartRequest) check() error {
	switch {
	case r.Namespace == "" || r.ID == "":
		return errors.New("it names no container: namespace and id are needed")
	case r.PID <= 0:
		return fmt.Errorf("pid %d: the container's first process is needed", r.PID)
	}
	return nil
}

// announced is a task that a runtime's wrapper or hook spoke of before containerd knew it.
type announced struct {
	pid   int
	start uint64
}

// of is the PID of the container's task: containerd's, or else the announced one while it lives.
func (a announced) of(pid int) int {
	if pid != 0 || a.pid == 0 {
		return pid
	}
	if start, err := startTime(a.pid); err != nil || start != a.start {
		return 0
	}
	return a.pid
}

// start brings a container that is about to start to its rules and says what has
// come of it. It does not wait for a free worker.
func (r *reconciler) start(ctx context.Context, req StartRequest) (StartAnswer, error) {
	k := Key{req.Namespace, req.ID}
	if !r.settings.Load().watches(k.Namespace) {
		return StartAnswer{Known: true, State: StateNone, Reason: "the agent does not look at containerd namespace " + k.Namespace}, nil
	}
	start, err := startTime(req.PID)
	if err != nil {
		return StartAnswer{}, fmt.Errorf("container %s: its first process: %w", k, err)
	}
	began := r.now()
	r.mu.Lock()
	rec := r.records[k]
	if rec == nil {
		rec = r.add(k)
	}
	rec.announced = announced{req.PID, start}
	rec.stale = true
	rec.version++
	r.mu.Unlock()
	c, err := r.settled(ctx, k, req.PID)
	if errors.Is(err, errGone) {
		return StartAnswer{State: StateNone}, nil // or it is a pause container
	}
	if err != nil {
		err = fmt.Errorf("container %s: %w", k, err)
		if refused := r.startable(k, true); refused != nil {
			return StartAnswer{Known: true, State: StatePending, Reason: err.Error(), Required: true, Refused: refused.Error()}, nil
		}
		return StartAnswer{}, err
	}
	out := StartAnswer{Known: true, State: c.State, Reason: c.Reason, Required: c.Required, Grafts: r.faultsOn(&c)}
	if refused := mustNotStart(&c); refused != nil {
		out.Refused = refused.Error()
	}
	if hasRules(c.Labels) || out.State != StateNone {
		r.log.Info("a container is about to start", "container", c.String(), "name", c.DisplayName(), "pid", c.PID, "bundle", req.Bundle, "state", out.State, "reason", out.Reason, "took", r.now().Sub(began))
	}
	return out, nil
}

// settled waits for a run that has looked at this task.
func (r *reconciler) settled(ctx context.Context, k Key, pid int) (Container, error) {
	for {
		select {
		case <-r.queue.add(k, true):
		case <-ctx.Done():
			return Container{}, fmt.Errorf("its faults are not there in time: %w", ctx.Err())
		}
		r.mu.Lock()
		rec := r.records[k]
		if rec == nil {
			r.mu.Unlock()
			return Container{}, errGone
		}
		c, again, unseen := rec.c, rec.stale, rec.unseen
		r.mu.Unlock()
		switch {
		case unseen != nil:
			return c, fmt.Errorf("cannot look it up: %w", unseen)
		case c.PID == pid:
			return c, nil
		case !again: // else news of its last task came in between
			return c, fmt.Errorf("process %d has ended, or is not its first", pid)
		}
	}
}

// faultsOn lists the ids of the grafts and kernel faults that the agent put on a task.
func (r *reconciler) faultsOn(c *Container) []string {
	var ids []string
	for _, a := range r.memory.rules(c.Key, c.PID, c.StartTime) {
		if a.Done && a.Graft != "" && !slices.Contains(ids, a.Graft) {
			ids = append(ids, a.Graft)
		}
	}
	for _, f := range r.faults.where(func(f *liveFault) bool { return f.of(c.Key, c.PID, c.StartTime) && f.origin != keeper.OriginUser }) {
		ids = append(ids, f.id)
	}
	return ids
}
