package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// ErrStopped says that the node is stopped: no fault starts until it is released.
var ErrStopped = errors.New("faults are stopped on this node")

// Stopped is why no fault starts on a node. It is kept in the state directory, so
// that it holds with or without an agent, and over a restart of one.
type Stopped struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// By is who asked for it.
	By string `json:"by,omitempty"`
	// Grafts are the ids of the grafts that were taken off for it: what labels and policies
	// asked of them is asked again after the release, if its time is not up.
	Grafts []string `json:"grafts,omitempty"`
}

// Err is the ErrStopped that says so to a person.
func (s *Stopped) Err() error {
	return fmt.Errorf("%w since %s: %s. `faultgraft release` lifts that", ErrStopped, s.Since.Local().Format(time.DateTime), s.Reason)
}

func (d stateDir) stopped() string { return filepath.Join(string(d), "stopped.json") }

// ReadStopped says whether the node with that state directory (empty:
// DefaultStateDir) is stopped; nil: it is not. A marker that cannot be read is an
// error, and whoever wants to start a fault takes it for a stop.
func ReadStopped(dir string) (*Stopped, error) {
	path := orDefault(dir).stopped()
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w: faultgraft needs root", err)
	}
	if err != nil {
		return nil, fmt.Errorf("is this node stopped? %w", err)
	}
	s := &Stopped{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("is this node stopped? %s: %w; `faultgraft release` removes it", path, err)
	}
	return s, nil
}

// CheckStopped is an ErrStopped if the node is stopped.
func CheckStopped(dir string) error {
	s, err := ReadStopped(dir)
	if err == nil && s != nil {
		err = s.Err()
	}
	return err
}

// WriteStopped stops the node: nothing starts from here on. What is there is left. Where there is
// no room for the marker, an empty one stops the node too, and the error is that nobody can read why.
func WriteStopped(dir string, s Stopped) error {
	d := orDefault(dir)
	if err := d.make(); err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := ReplaceFile(d.stopped(), append(b, '\n')); err != nil {
		f, cerr := os.OpenFile(d.stopped(), os.O_CREATE|os.O_WRONLY, 0o600)
		if cerr != nil {
			return fmt.Errorf("stop this node: %w", errors.Join(err, cerr))
		}
		_ = f.Close() // nothing was written
		return fmt.Errorf("this node is stopped, but why is not on record: %w", err)
	}
	return nil
}

// LiftStopped removes the marker; os.ErrNotExist: the node is not stopped.
func LiftStopped(dir string) error { return os.Remove(orDefault(dir).stopped()) }

// ReplaceFile writes a file so that a reader sees the old content or the new. An error names the file.
func ReplaceFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error at hand is the one to report
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	atFile.Pass("written")
	err = os.Rename(f.Name(), path)
	atFile.Pass("renamed")
	return err
}

func orDefault(dir string) stateDir {
	if dir == "" {
		return DefaultStateDir
	}
	return stateDir(dir)
}

// StopAll has every keeper end its faults at once and take its grafts off, all of
// them side by side, whoever asked for them. It gives the grafts, those that could
// not be taken off yet with their reason: their faults have ended, and their keepers
// try again. A keeper that does not answer is killed, and its grafts are taken off
// without it (Forced). The error is about keepers that cannot be killed.
func (c *Client) StopAll(ctx context.Context, reason string) ([]Graft, error) {
	return c.fromEach(func(key string) (grafts []Graft, err error) {
		err = c.call(ctx, key, http.MethodPost, "/v1/stop", stopCall{Reason: reason}, &grafts)
		var silent *SilentError
		if errors.As(err, &silent) {
			return c.force(ctx, silent)
		}
		return grafts, err
	})
}

// stopCall asks a keeper to take everything off.
type stopCall struct {
	Reason string `json:"reason"`
}

// stopAll ends the faults of all layers first, without waiting for a swap that is
// at work, and then takes the layers off. Where there is no server, there are no faults, and the next one gets none.
func (k *keeper) stopAll(c stopCall, who string) []Graft {
	why := (&Stopped{Reason: c.Reason, Since: time.Now()}).Err()
	k.mu.Lock()
	server := k.server // those are marked before one that follows is there, or it is seen here
	var all []*held
	for _, h := range k.grafts {
		if h.State != StateLingering { // off already, and without rules
			h.halted = why
			all = append(all, h)
		}
	}
	k.mu.Unlock()
	k.halt(server, all)
	ids := []string{}
	for _, h := range all {
		ids = append(ids, h.ID)
	}
	out := []Graft{}
	for _, id := range ids {
		g, err := k.recover(id, "stopped: "+c.Reason, who)
		switch {
		case errors.Is(err, errNoGraft): // it ended by itself, or was refused
			continue
		case err != nil:
			g = k.failed(id, err)
		}
		out = append(out, g)
	}
	k.endIfIdle()
	return out
}

// halt ends the faults of grafts that were stopped. What gives them rules meanwhile has done so before, or does not.
func (k *keeper) halt(server *serverClient, all []*held) {
	if server == nil || !server.alive() {
		return
	}
	var wg sync.WaitGroup
	for _, h := range all {
		wg.Go(func() {
			h.ruling.Lock()
			defer h.ruling.Unlock()
			err := server.call(callRules, rulesCall{Layer: h.ID, Start: time.Now()}, nil)
			if err != nil && !strings.Contains(err.Error(), "no layer of graft") { // it may not be there yet
				k.o.Logger.Warn("end the rules", "graft", h.ID, "err", err)
			}
		})
	}
	wg.Wait()
}

// failed is a graft that could not be taken off.
func (k *keeper) failed(id string, err error) Graft {
	k.mu.Lock()
	defer k.mu.Unlock()
	g := Graft{ID: id, Target: k.target, State: StateFailed, Rules: []RuleStatus{}}
	if h := k.grafts[id]; h != nil {
		g = h.Graft
	}
	g.Reason = err.Error()
	return g
}
