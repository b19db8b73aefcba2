package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// Health is the answer to GET /v1/healthz.
type Health struct {
	// OK: the agent works; it may still wait for a source.
	OK bool `json:"ok"`
	// PID is the agent's.
	PID        int    `json:"pid"`
	Version    string `json:"version,omitempty"`
	NRI        Source `json:"nri"`
	Containerd Source `json:"containerd"`
	// StartBudget is how long the start of a container may wait, RequestTimeout what
	// the runtime allows for an answer by NRI: absent while it has not said so.
	StartBudget    Duration `json:"startBudget,omitempty"`
	RequestTimeout Duration `json:"requestTimeout,omitempty"`
}

// Source is where the agent learns of containers.
type Source struct {
	Connected bool `json:"connected"`
	// Reason says why it is not connected.
	Reason string `json:"reason,omitempty"`
}

// Containers is the answer to GET /v1/containers.
type Containers struct {
	Containers []Container `json:"containers"`
	// Warning says what the list lacks, if anything.
	Warning string `json:"warning,omitempty"`
}

// refreshTimeout bounds how long a list waits for containers whose graft has just ended.
const refreshTimeout = 2 * time.Second

// server answers the control socket: HTTP, to root only.
type server struct {
	loop   *reconciler
	health func() Health
	ready  func() Readiness
	log    *slog.Logger
}

// serve answers on the state directory's socket until ctx ends; ready is called
// when it listens. The socket file is removed.
func (s *server) serve(ctx context.Context, stateDir string, ready func()) error {
	l, err := wire.ListenRoot(filepath.Join(stateDir, SocketName), s.log)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn), ConnContext: wire.WithPeer,
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		sctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		err := srv.Shutdown(sctx)
		if err != nil { // a request that does not end
			err = srv.Close()
		}
		stopped <- err
	})
	ready()
	err = srv.Serve(l)
	if !stop() {
		return <-stopped
	}
	return fmt.Errorf("control socket %s: %w", l.Addr(), errors.Join(err, srv.Close()))
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/containers", s.containers)
	mux.HandleFunc("POST /v1/start", s.start)
	s.kernelRoutes(mux)
	s.stopRoutes(mux)
	s.policyRoutes(mux)
	mux.HandleFunc("GET /v1/config", func(w http.ResponseWriter, _ *http.Request) { s.write(w, s.loop.settings.Load().effective) })
	mux.HandleFunc("GET /v1/healthz", func(w http.ResponseWriter, _ *http.Request) { s.write(w, s.health()) })
	healthRoutes(mux, s.health, s.ready)
	mux.Handle("GET /metrics", s.loop.metrics.handler(s.log))
	return mux
}

// containers lists the containers with the grafts that are on them now.
func (s *server) containers(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), listTimeout)
	defer cancel()
	grafts, err := s.loop.grafter.List(ctx)
	var out Containers
	if err != nil {
		out.Warning = fmt.Sprintf("not all grafts of this node could be listed: %v", err)
	} else {
		s.refresh(ctx, grafts)
	}
	out.Containers = s.withGrafts(s.loop.containers(), grafts)
	if out.Containers == nil {
		out.Containers = []Container{}
	}
	s.write(w, out)
}

// refresh reconciles containers that count as active and whose graft is gone: its time is up, or a person took it off.
func (s *server) refresh(ctx context.Context, grafts []keeper.Graft) {
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	var runs []<-chan struct{}
	for _, c := range s.loop.containers() {
		own := graftsOf(grafts, &c, s.loop.memory.rules(c.Key, c.PID, c.StartTime))
		labelled := func(f *liveFault) bool { return f.of(c.Key, c.PID, c.StartTime) && f.origin != keeper.OriginUser }
		if c.State == StateActive && len(s.loop.faults.where(labelled)) == 0 && !slices.ContainsFunc(own, func(g keeper.Graft) bool { return g.Origin != keeper.OriginUser }) {
			runs = append(runs, s.loop.queue.add(c.Key, true))
		}
	}
	for _, done := range runs {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

// withGrafts fills in the grafts; a container that only a person grafted is active too.
func (s *server) withGrafts(cs []Container, grafts []keeper.Graft) []Container {
	for i := range cs {
		c := &cs[i]
		if c.PID == 0 {
			continue
		}
		for _, g := range graftsOf(grafts, c, s.loop.memory.rules(c.Key, c.PID, c.StartTime)) {
			c.Grafts = append(c.Grafts, g.ID)
			if c.State == StateNone && g.Origin == keeper.OriginUser && g.State == keeper.StateActive {
				c.State, c.Reason, c.Since = StateActive, "by inject", g.Since
			}
		}
		for _, f := range s.loop.faults.where(func(f *liveFault) bool { return f.of(c.Key, c.PID, c.StartTime) }) {
			c.Grafts = append(c.Grafts, f.id)
			if c.State == StateNone {
				c.State, c.Reason, c.Since = StateActive, "by inject", f.since
			}
		}
	}
	return cs
}

func (s *server) write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("a client of the control socket went away", "err", err)
	}
}
