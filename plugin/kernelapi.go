package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"github.com/faultgraft/faultgraft/policy"
)

const (
	// maxRequest bounds the body of a request, bytes.
	maxRequest = 4 << 20
	// armTimeout bounds one request for kernel faults; the answer has to fit into the socket's write time-out.
	armTimeout = 25 * time.Second
)

// apiError is the body of an answer to a request for kernel faults that is not 200.
type apiError struct {
	Error string `json:"error"`
}

// kernelRoutes are the part of the control socket that is about kernel faults:
//
//	GET    /v1/kernel       -> []KernelFault
//	GET    /v1/kernel/{id}  -> KernelFault
//	POST   /v1/kernel       KernelRequest -> []KernelFault, one for each rule
//	DELETE /v1/kernel/{id}  -> KernelFault, as it was
func (s *server) kernelRoutes(mux *http.ServeMux) {
	faults := s.loop.faults
	all := func() []KernelFault { return append(s.loop.kernelFaults(), faults.foreign()...) }
	mux.HandleFunc("GET /v1/kernel", func(w http.ResponseWriter, _ *http.Request) { s.write(w, all()) })
	mux.HandleFunc("GET /v1/kernel/{id}", func(w http.ResponseWriter, r *http.Request) {
		for _, f := range all() {
			if f.ID == r.PathValue("id") {
				s.write(w, f)
				return
			}
		}
		s.refuse(w, NoKernelFault(r.PathValue("id")))
	})
	mux.HandleFunc("POST /v1/kernel", func(w http.ResponseWriter, r *http.Request) {
		var req KernelRequest
		if err := keeper.DecodeStrictly(http.MaxBytesReader(w, r.Body, maxRequest), &req); err != nil {
			s.fail(w, http.StatusBadRequest, fmt.Errorf("request: %w", err))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), armTimeout)
		defer cancel()
		made, err := s.loop.injectKernel(ctx, req, wire.Who(r.Context()))
		atKernelRequest.Pass("armed")
		if err == nil && r.Context().Err() != nil {
			// Interrupted: to whoever asked, it has failed.
			for _, f := range made {
				_, derr := faults.disarm(f.ID, "whoever asked for it has hung up")
				err = errors.Join(err, derr)
			}
			s.log.Warn("whoever asked for kernel faults has hung up; they are ended", "err", err)
			return
		}
		if err != nil {
			s.refuse(w, err)
			return
		}
		s.write(w, made)
	})
	mux.HandleFunc("DELETE /v1/kernel/{id}", func(w http.ResponseWriter, r *http.Request) {
		f, err := faults.disarmFor(r.PathValue("id"), endAsked, wire.Who(r.Context()))
		if errors.Is(err, ErrNoKernelFault) { // it may be another process's that has ended
			f, err = faults.endPinned(r.PathValue("id"), wire.Who(r.Context()))
		}
		if err != nil {
			s.refuse(w, err)
			return
		}
		s.write(w, f)
	})
}

// request is what a body of the control socket asks for.
type request interface{ check() error }

// read takes a request from a body; false: it was refused, and answered.
func (s *server) read(w http.ResponseWriter, r *http.Request, into request) bool {
	err := keeper.DecodeStrictly(http.MaxBytesReader(w, r.Body, maxRequest), into)
	if err == nil {
		err = into.check()
	}
	if err != nil {
		s.fail(w, http.StatusBadRequest, fmt.Errorf("request: %w", err))
	}
	return err == nil
}

func (s *server) refuse(w http.ResponseWriter, err error) {
	code := http.StatusConflict
	switch {
	case errors.Is(err, ErrNoKernelFault), errors.Is(err, ErrNotStopped), errors.Is(err, ErrNoPolicy):
		code = http.StatusNotFound
	case errors.Is(err, keeper.ErrStopped):
		code = http.StatusLocked
	}
	s.fail(w, code, err)
}

func (s *server) fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(apiError{Error: err.Error()}); err != nil {
		s.log.Debug("a client of the control socket went away", "err", err)
	}
}

// injectKernel arms what a person asked for.
func (r *reconciler) injectKernel(ctx context.Context, req KernelRequest, who string) ([]KernelFault, error) {
	t := req.Target
	made, err := func() ([]KernelFault, error) {
		if c := r.containerOf(t.PID); c != nil {
			if _, err := c.target(); err != nil {
				return nil, err // protected, or enable=false
			}
		}
		return r.faults.inject(ctx, req, who)
	}()
	if err != nil {
		r.metrics.kernelFaults.WithLabelValues("failed").Inc()
		r.faults.events.refused(t, originOf(req), who, policy.Rule{}, err)
		r.log.Warn("kernel faults refused", "container", displayOf(t), "pid", t.PID, "err", err)
		return nil, err
	}
	r.metrics.kernelFaults.WithLabelValues("armed").Add(float64(len(made)))
	return made, nil
}

func originOf(req KernelRequest) keeper.Origin {
	if req.Origin == "" {
		return keeper.OriginUser
	}
	return req.Origin
}

// inject arms all rules of a request, or none.
func (k *kernelFaults) inject(ctx context.Context, req KernelRequest, who string) ([]KernelFault, error) {
	t := req.Target
	if len(req.Rules) == 0 {
		return nil, errors.New("no rule")
	}
	for _, rule := range req.Rules {
		if rule.Kernel == nil {
			return nil, fmt.Errorf("rule %q is no kernel rule", rule.Name)
		}
		if err := rule.Check(); err != nil {
			return nil, err
		}
	}
	start, err := startTime(t.PID)
	if err != nil {
		return nil, fmt.Errorf("pid %d: %w", t.PID, err)
	}
	if t.StartTime != 0 && t.StartTime != start {
		return nil, fmt.Errorf("pid %d: the process has ended, another one has its id now", t.PID)
	}
	t.StartTime = start
	cgroup, err := k.cgroup(t.PID)
	if err != nil {
		return nil, err
	}
	specs := make([]armSpec, 0, len(req.Rules))
	for _, rule := range req.Rules {
		rule.EnsureSeed(rand.Uint64)
		specs = append(specs, armSpec{target: t, cgroup: cgroup, rule: rule, origin: originOf(req), who: who, outlive: req.Outlive})
	}
	return k.armAll(ctx, specs)
}

// containerOf finds the container that a process is in, by its mount namespace; nil: none that is known.
func (r *reconciler) containerOf(pid int) *Container {
	t, err := graft.CheckTarget(pid)
	if err != nil || t.Tree {
		return nil // refused later, or no container's
	}
	for _, c := range r.containers() {
		if c.PID == 0 {
			continue
		}
		if first, err := graft.CheckTarget(c.PID); c.PID == pid || err == nil && first.MountNS == t.MountNS {
			return &c
		}
	}
	return nil
}
