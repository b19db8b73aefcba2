package plugin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// Readiness is the answer to GET /readyz: 200 if Ready, else 503.
type Readiness struct {
	Ready  bool    `json:"ready"`
	Checks []Check `json:"checks"`
}

// Check is one thing that the agent needs.
type Check struct {
	// Name is stateDir, auditLog, containerd, nri or metrics.
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Reason says why it is not, or that it is not asked for.
	Reason string `json:"reason,omitempty"`
}

// readiness tells whether the agent can do all that it is there for.
func (a *agent) readiness() Readiness {
	r := Readiness{Ready: true}
	add := func(name string, err error) {
		c := Check{Name: name, OK: err == nil}
		if err != nil {
			c.Reason, r.Ready = err.Error(), false
		}
		r.Checks = append(r.Checks, c)
	}
	add("stateDir", writable(a.opts.StateDir))
	add("auditLog", keeper.CheckAudit(a.opts.StateDir))
	source := func(name string, c *connection) {
		up, why := c.get()
		switch {
		case up:
			add(name, nil)
		case why == "":
			add(name, fmt.Errorf("not connected"))
		default:
			add(name, fmt.Errorf("not connected: %s", why))
		}
	}
	source("containerd", &a.containerd)
	if a.opts.DisableNRI {
		r.Checks = append(r.Checks, Check{Name: "nri", OK: true, Reason: "disabled"})
	} else {
		source("nri", &a.nri)
	}
	if a.listener != nil {
		add("metrics", a.listener.trouble())
	}
	return r
}

// writable makes a file in a directory and removes it.
func writable(dir string) error {
	f, err := os.CreateTemp(dir, ".writable-")
	if err != nil {
		return err
	}
	_, err = f.Write([]byte{'\n'}) // a full disk makes files, and takes no data
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if rerr := os.Remove(f.Name()); err == nil {
		err = rerr
	}
	return err
}

// healthRoutes are for probes: they need no more than a GET.
func healthRoutes(mux *http.ServeMux, health func() Health, ready func() Readiness) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { probe(w, http.StatusOK, health()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r, status := ready(), http.StatusOK
		if !r.Ready {
			status = http.StatusServiceUnavailable
		}
		probe(w, status, r)
	})
}

func probe(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the peer has hung up: nothing to tell it
}
