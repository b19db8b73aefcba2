package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"github.com/faultgraft/faultgraft/tracer"
)

// How long a call to a keeper takes is not known beforehand: it may wait for other grafts of the target. So it has no deadline of its
// own. While it is under way the keeper is asked again and again whether it runs; one that does not say so was stopped, frozen or hangs.
const (
	// silence is how long a keeper may take to say that it runs.
	silence = 5 * time.Second
	// askEvery is how long it is left alone in between, and before.
	askEvery = time.Second
	// listWait is how long it may take with what it does at once: to say what it holds.
	listWait = 3 * time.Second
)

// alivePath is where it is asked. A keeper of an earlier version does not know it, and says so: an answer too.
const alivePath = "/v1/alive"

// SilentError says that a keeper does not answer, why, and what can be done.
type SilentError struct {
	// Key names the keeper, PID is its process; 0: the socket did not tell.
	Key string
	PID int
	// For is how long it said nothing.
	For time.Duration
	// Why is what can be seen of the process.
	Why string
}

func (e *SilentError) Error() string {
	return fmt.Sprintf("keeper %s (process %d) does not answer for %v: %s", e.Key, e.PID, e.For, e.Why)
}

// call sends a request to a keeper, and waits for its answer as long as the keeper runs. The error is a *SilentError if it does not.
func (c *Client) call(ctx context.Context, key, method, path string, in, out any) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if c.fallsSilent(ctx, key) {
			cancel(c.silent(key, silence))
		}
	}()
	return orSilent(ctx, c.request(ctx, key, method, path, in, out))
}

// callSoon is call for what a keeper answers at once.
func (c *Client) callSoon(ctx context.Context, key, method, path string, in, out any) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(listWait, func() { cancel(c.silent(key, listWait)) })
	defer late.Stop()
	return orSilent(ctx, c.request(ctx, key, method, path, in, out))
}

// orSilent is the error of a request, or the *SilentError that ended it.
func orSilent(ctx context.Context, err error) error {
	var silent *SilentError
	if err != nil && errors.As(context.Cause(ctx), &silent) {
		return silent
	}
	return err
}

// fallsSilent asks a keeper whether it runs until it does not say so (true), or ctx ends.
func (c *Client) fallsSilent(ctx context.Context, key string) bool {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		asked, cancel := context.WithTimeout(ctx, silence)
		var any struct{}
		_ = c.request(asked, key, http.MethodGet, alivePath, nil, &any) // an error that comes in time is an answer: the call itself will fail
		late := errors.Is(asked.Err(), context.DeadlineExceeded)
		cancel()
		if late {
			return true
		}
	}
}

// silent looks at a keeper that did not answer.
func (c *Client) silent(key string, d time.Duration) *SilentError {
	e := &SilentError{Key: key, For: d}
	e.PID, _ = c.listener(key)
	if e.PID == 0 {
		e.Why = "its process cannot be seen from here; what it had to say is in " + c.dir().log(key)
		return e
	}
	e.Why = whyStill(e.PID) + fmt.Sprintf(". Its faults end with their ttl; `kill -KILL %d` ends them at once and has its layers taken off", e.PID)
	return e
}

// listener is the process that listens for a keeper's callers.
func (c *Client) listener(key string) (pid int, ok bool) {
	conn, err := wire.DialUnix(c.dir().socket(key))
	if err != nil {
		return 0, false
	}
	defer func() { _ = conn.Close() }() // it only tells who listens
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, false
	}
	peer, err := wire.PeerOf(u)
	return peer.PID, err == nil // who called listen(2), see unix(7)
}

// hangs is what is said of a process that nothing stands in the way of.
const hangs = "it hangs, or the machine has no time for it"

// whyStill says why a process does nothing, and what makes it go on.
func whyStill(pid int) string {
	stat, err := graft.ReadStat(pid)
	if err != nil || stat.Ended() {
		return "it has ended just now, try again"
	}
	if err := tracer.Frozen(pid, stat.Comm); err != nil {
		return err.Error()
	}
	switch stat.State {
	case 'T':
		return fmt.Sprintf("it was stopped by a signal, `kill -CONT %d` lets it go on", pid)
	case 't':
		return "a debugger has stopped it, which has to let it go on or detach"
	case 'D':
		return "it waits within the kernel (uninterruptible sleep)"
	}
	return hangs
}

// saying adds to a *SilentError what becomes of that which was asked for.
func saying(err error, then string) error {
	var silent *SilentError
	if errors.As(err, &silent) {
		return fmt.Errorf("%w. %s", err, then)
	}
	return err
}
