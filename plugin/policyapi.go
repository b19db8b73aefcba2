package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/limits"
	"github.com/faultgraft/faultgraft/policy/manifest"
)

// FileHeader is the header in which a client says what the manifests it sends are called, for errors.
const FileHeader = "X-Faultgraft-File"

// policyRoutes are the part of the control socket that is about policies:
//
//	GET    /v1/policies                -> []policies.Status, without targets
//	POST   /v1/policies[?dryRun=true]  YAML -> []policies.Result: all are applied, or none
//	GET    /v1/policies/{name}         -> policies.Status
//	DELETE /v1/policies/{name}         -> policies.Status, as it was
//	POST   /v1/policies/{name}/pause   -> policies.Status
//	POST   /v1/policies/{name}/resume  -> policies.Status
func (s *server) policyRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/policies", func(w http.ResponseWriter, _ *http.Request) { s.write(w, s.store().List()) })
	mux.HandleFunc("POST /v1/policies", s.applyPolicies)
	mux.HandleFunc("GET /v1/policies/{name}", func(w http.ResponseWriter, r *http.Request) {
		st, err := s.loop.policyStatus(r)
		s.answerPolicy(w, st, err)
	})
	mux.HandleFunc("DELETE /v1/policies/{name}", func(w http.ResponseWriter, r *http.Request) {
		st, err := s.loop.policyStatus(r)
		if err == nil {
			err = s.store().Delete(st.Name, wire.Who(r.Context()))
		}
		s.answerPolicy(w, st, err)
	})
	for verb, do := range map[string]func(name, by string) error{"pause": s.store().Pause, "resume": s.store().Resume} {
		mux.HandleFunc("POST /v1/policies/{name}/"+verb, func(w http.ResponseWriter, r *http.Request) {
			if !s.empty(w, r) {
				return
			}
			err := do(r.PathValue("name"), wire.Who(r.Context()))
			var st policies.Status
			if err == nil {
				st, err = s.loop.policyStatus(r)
			}
			s.answerPolicy(w, st, err)
		})
	}
}

func (s *server) store() *policies.Store { return s.loop.policies.store }

func (s *server) answerPolicy(w http.ResponseWriter, st policies.Status, err error) {
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.write(w, st)
}

// empty refuses a body where none is expected.
func (s *server) empty(w http.ResponseWriter, r *http.Request) bool {
	n, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxRequest))
	if err == nil && n > 0 {
		err = errors.New("this request takes no body")
	}
	if err != nil {
		s.fail(w, http.StatusBadRequest, fmt.Errorf("request: %w", err))
	}
	return err == nil
}

// policyStatus is a policy with its targets, and what their rules have done up to now.
func (r *reconciler) policyStatus(req *http.Request) (policies.Status, error) {
	st, err := r.policies.store.Get(req.PathValue("name"))
	if err != nil {
		return st, err
	}
	type target struct {
		key Key
		run uint64
	}
	hits := map[target]uint64{}
	grafts, err := r.grafter.List(req.Context())
	if err != nil { // those that answered are in the list
		r.log.Warn("list the grafts of this node", "err", err)
	}
	for _, f := range r.faults.list() {
		for _, rule := range f.Rules {
			if rule.Policy == st.Name {
				hits[target{Key{f.Target.Namespace, f.Target.ID}, rule.Run}] += rule.Fired
			}
		}
	}
	for _, g := range grafts {
		for _, rule := range g.Rules {
			if rule.Policy == st.Name {
				hits[target{Key{g.Target.Namespace, g.Target.ID}, rule.Run}] += rule.Fired
			}
		}
	}
	for i := range st.Targets {
		t := &st.Targets[i]
		t.Hits += hits[target{Key(t.Key), t.Run}]
	}
	return st, nil
}

// applyPolicies takes manifests: all of them, or none.
func (s *server) applyPolicies(w http.ResponseWriter, r *http.Request) {
	dry := false
	if q := r.URL.Query(); q.Has("dryRun") {
		var err error
		if dry, err = strconv.ParseBool(q.Get("dryRun")); err != nil {
			s.fail(w, http.StatusBadRequest, fmt.Errorf("dryRun=%s: it is true or false", q.Get("dryRun")))
			return
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		s.fail(w, http.StatusBadRequest, fmt.Errorf("request: %w", err))
		return
	}
	file := r.Header.Get(FileHeader)
	if file == "" {
		file = "-"
	}
	all, err := s.loop.readPolicies(file, body)
	if err != nil {
		s.fail(w, http.StatusBadRequest, err)
		return
	}
	if err := s.loop.waitKnown(r.Context()); err != nil {
		s.refuse(w, err)
		return
	}
	results, err := s.loop.applyAll(all, dry, wire.Who(r.Context()))
	if err != nil {
		s.refuse(w, fmt.Errorf("%s: %w", file, err))
		return
	}
	s.write(w, results)
}

// waitKnown waits until the agent knows the containers that there are, so that it can say which match.
func (r *reconciler) waitKnown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	select {
	case <-r.policies.known:
		return nil
	case <-ctx.Done():
		return errors.New(notKnown)
	}
}

// applyAll applies policies. Each is looked at before the first is kept: what is
// wrong with one of them keeps all of them out.
func (r *reconciler) applyAll(all []faultpolicy.FaultPolicy, dry bool, who string) ([]policies.Result, error) {
	seen := map[string]bool{}
	var errs []error
	out := make([]policies.Result, 0, len(all))
	for _, p := range all {
		name := p.Metadata.Name
		if seen[name] {
			errs = append(errs, fmt.Errorf("policy %s is there twice; names are unique on a node", name))
		}
		seen[name] = true
		res, err := r.policies.store.Preview(p)
		if err != nil {
			errs = append(errs, err)
		}
		out = append(out, res)
	}
	if len(errs) > 0 || dry {
		return out, errors.Join(errs...)
	}
	var done []string
	for i, p := range all {
		res, err := r.policies.store.Apply(p, who)
		if err != nil {
			if len(done) > 0 {
				err = fmt.Errorf("%w; applied before it: %s", err, strings.Join(done, ", "))
			}
			return nil, err
		}
		out[i], done = res, append(done, p.Metadata.Name)
	}
	return out, nil
}

// readPolicies reads manifests of any kind that stands for a policy, and checks that
// the running kernel can carry their kernel rules out.
func (r *reconciler) readPolicies(file string, text []byte) ([]faultpolicy.FaultPolicy, error) {
	all, err := manifest.Open(file, text, r.settings.Load().policyDefaults())
	if err != nil {
		return nil, err
	}
	var errs []error
	out := make([]faultpolicy.FaultPolicy, 0, len(all))
	for _, m := range all {
		for i, rule := range m.Rules {
			if rule.Kernel == nil {
				continue
			}
			err := r.faults.check(rule)
			var wrong *policy.SyntaxError
			if errors.As(err, &wrong) {
				err = m.RuleError(i, wrong)
			} else if err != nil {
				at, line := m.Place()
				err = fmt.Errorf("%s:%d: policy %s: rule %s: %w", at, line, m.Policy.Metadata.Name, rule.Name, err)
			}
			errs = append(errs, err)
		}
		out = append(out, m.Policy)
	}
	return out, errors.Join(errs...)
}

// policyDefaults are what rules of policies are read with.
func (s *settings) policyDefaults() policy.Defaults { return s.limits.Defaults(limits.Policies) }
