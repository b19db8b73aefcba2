package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// stopTimeout bounds a stop; the answer has to fit into the socket's write time-out.
const stopTimeout = 25 * time.Second

// StopRequest asks for a stop.
type StopRequest struct {
	// Reason is shown to everybody who wants to start a fault.
	Reason string `json:"reason"`
}

func (r StopRequest) check() error {
	if strings.TrimSpace(r.Reason) == "" {
		return errors.New("say why: a stop needs a reason")
	}
	return nil
}

// stopRoutes are the part of the control socket that stops the node:
//
//	GET    /v1/stop  -> keeper.Stopped, or 404: the node is not stopped
//	POST   /v1/stop  StopRequest -> StopReport
//	DELETE /v1/stop  -> keeper.Stopped, as it was
func (s *server) stopRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/stop", func(w http.ResponseWriter, _ *http.Request) {
		was, err := keeper.ReadStopped(s.loop.stateDir)
		if err == nil && was == nil {
			err = ErrNotStopped
		}
		if err != nil {
			s.refuse(w, err)
			return
		}
		s.write(w, was)
	})
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		var req StopRequest
		if !s.read(w, r, &req) {
			return
		}
		// Whoever asked may hang up: what was begun is brought to its end.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), stopTimeout)
		defer cancel()
		report, err := s.loop.stop(ctx, req.Reason, wire.Who(r.Context()))
		if err != nil && report.Since.IsZero() {
			s.refuse(w, err)
			return
		}
		if err != nil {
			report.Failed = append(report.Failed, keeper.Graft{ID: "-", State: keeper.StateFailed, Reason: err.Error(), Rules: []keeper.RuleStatus{}})
		}
		s.write(w, report)
	})
	mux.HandleFunc("DELETE /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		was, err := s.loop.release(wire.Who(r.Context()))
		if err != nil {
			s.refuse(w, err)
			return
		}
		s.write(w, was)
	})
}

func (r *reconciler) stopper() *stopper {
	return &stopper{stateDir: r.stateDir, grafter: r.grafter, faults: r.faults}
}

// stop ends all faults of the node and forbids new ones.
func (r *reconciler) stop(ctx context.Context, reason, who string) (StopReport, error) {
	report, err := r.stopper().stop(ctx, reason, who)
	r.log.Warn("stopped: no fault starts until the release", "reason", reason, "who", who, "reverted", len(report.Reverted), "failed", len(report.Failed), "tookMs", report.TookMs, "err", err)
	r.lookAtAll() // so that their states say it
	return report, err
}

// release lifts a stop and has labels and policies applied again whose time is not up.
func (r *reconciler) release(who string) (*keeper.Stopped, error) {
	was, err := r.stopper().release(who, r.memory.reopen)
	if err == nil {
		r.log.Info("released", "was", was.Reason, "who", who)
		r.lookAtAll()
	}
	return was, err
}

// Stop has the agent end all faults of the node; no other starts until Release.
func (c *Client) Stop(ctx context.Context, reason string) (StopReport, error) {
	var out StopReport
	body, err := json.Marshal(StopRequest{Reason: reason})
	if err != nil {
		return out, err
	}
	err = c.ask(ctx, http.MethodPost, "/v1/stop", body, &out)
	return out, err
}

// Release lifts a stop. ErrNotStopped: there is none.
func (c *Client) Release(ctx context.Context) (was keeper.Stopped, err error) {
	b, err := c.do(ctx, http.MethodDelete, "/v1/stop", bytes.NewReader(nil))
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	return was, err
}
