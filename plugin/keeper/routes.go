package keeper

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/faultgraft/faultgraft/plugin/wire"
)

// apiError is the body of an answer that is not 2xx.
type apiError struct {
	Error string `json:"error"`
}

// routes is the control API of a keeper: HTTP and JSON on its root-only socket.
//
//	GET    /v1/alive                -> {}: the keeper runs
//	GET    /v1/grafts               -> []Graft
//	POST   /v1/grafts               Request -> Graft, with its report
//	PUT    /v1/grafts/{id}/rules    Change -> Graft, with the report of files that were swapped again
//	POST   /v1/grafts/{id}/release  Release -> Released
//	POST   /v1/stop                 stopCall -> []Graft, all that were there, taken off
//	POST   /v1/end                  -> [], and the keeper ends if it holds nothing
//	DELETE /v1/grafts/{id}          -> Graft, with the report of the ungraft
//
// Who asks may be of another version. What a request has that this keeper does not know is refused, not left
// out: a rule without one of its filters would match more. What an answer has that the asker does not know is for others.
func (k *keeper) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+alivePath, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, struct{}{})
	})
	mux.HandleFunc("GET /v1/grafts", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, k.list())
	})
	mux.HandleFunc("POST /v1/grafts", func(w http.ResponseWriter, r *http.Request) {
		var req Request
		if !decode(w, r, &req) || k.nobodyWaits(r) {
			return
		}
		g, err := k.inject(req, wire.Who(r.Context()))
		if err == nil && r.Context().Err() != nil {
			// Interrupted: to whoever asked, the graft has failed. undo tries until it is off.
			k.o.Logger.Warn("whoever asked for the graft has hung up; it is taken off", "graft", g.ID, "added", g.Added)
			k.undo(g)
			return
		}
		reply(w, g, err)
	})
	mux.HandleFunc("PUT /v1/grafts/{id}/rules", func(w http.ResponseWriter, r *http.Request) {
		var c Change
		if !decode(w, r, &c) || k.nobodyWaits(r) {
			return
		}
		g, err := k.change(r.PathValue("id"), c, wire.Who(r.Context()))
		reply(w, g, err)
	})
	mux.HandleFunc("POST /v1/grafts/{id}/release", func(w http.ResponseWriter, r *http.Request) {
		var c Release
		if !decode(w, r, &c) {
			return
		}
		n, err := k.release(r.PathValue("id"), c)
		reply(w, n, err)
	})
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		var c stopCall
		if decode(w, r, &c) {
			answer(w, http.StatusOK, k.stopAll(c, wire.Who(r.Context())))
		}
	})
	mux.HandleFunc("POST /v1/end", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, []Graft{})
		k.endIfIdle()
	})
	mux.HandleFunc("DELETE /v1/grafts/{id}", func(w http.ResponseWriter, r *http.Request) {
		g, err := k.recover(r.PathValue("id"), "asked for", wire.Who(r.Context()))
		reply(w, g, err)
		if err == nil {
			k.endIfIdle()
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(versionHeader, cmp.Or(k.o.Version, "devel"))
		mux.ServeHTTP(w, r)
	})
}

// versionHeader of an answer has the version of the keeper.
const versionHeader = "Faultgraft-Version"

// nobodyWaits: this process was stopped for a while, and whoever asked has given up meanwhile and said that
// it was not done. What takes faults away is done all the same.
func (k *keeper) nobodyWaits(r *http.Request) bool {
	gone := wire.HungUp(r.Context())
	if gone {
		k.o.Logger.Warn("whoever asked has hung up: nothing is done", "request", r.Method+" "+r.URL.Path)
	}
	return gone
}

// bodyWait is how long the body of a request may take to arrive.
const bodyWait = 10 * time.Second

// decode reads the body of a request, or answers that it cannot.
func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	// The time that a body may take, and no more: a graft takes longer, and whether the client is still
	// there is found by a read. A connection of another kind, in a test, has no deadlines.
	conn := http.NewResponseController(w)
	_ = conn.SetReadDeadline(time.Now().Add(bodyWait))
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<20))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		answer(w, http.StatusBadRequest, apiError{Error: "request: " + err.Error()})
		return false
	}
	return true
}

func reply[T any](w http.ResponseWriter, v T, err error) {
	switch {
	case err == nil:
		answer(w, http.StatusOK, v)
	case errors.Is(err, errEnding):
		answer(w, http.StatusServiceUnavailable, apiError{Error: err.Error()})
	case errors.Is(err, ErrStopped):
		answer(w, http.StatusLocked, apiError{Error: err.Error()})
	case errors.Is(err, errNoGraft):
		answer(w, http.StatusNotFound, apiError{Error: err.Error()})
	default:
		answer(w, http.StatusConflict, apiError{Error: err.Error()})
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the peer has hung up: nothing to tell it
}
