package keeper

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
)

// ErrNoGraft says that no keeper knows the graft.
var ErrNoGraft = errors.New("no such graft")

// Client reaches the keepers of a node. The zero value works on DefaultStateDir.
type Client struct {
	// StateDir is the state directory; empty means DefaultStateDir.
	StateDir string
	// Executable is the faultgraft binary that keepers run; empty means this process's own.
	Executable string
}

func (c *Client) dir() stateDir {
	return orDefault(c.StateDir)
}

// startWait is how long a new keeper may take until it listens, endWait how long
// an old one may take to go, if the deadline of the graft is not longer.
const (
	startWait = 10 * time.Second
	endWait   = 10 * time.Second
)

// Inject grafts a layer over a path of the target, with a keeper started if it
// has none. On an error the target is as it was before. ErrStopped: the node is stopped.
func (c *Client) Inject(ctx context.Context, t Target, req Request) (Graft, error) {
	place, err := c.admit(t)
	if err != nil {
		return Graft{}, errors.Join(err, c.refused(t, req, err))
	}
	t.StartTime = place.StartTime
	key := keyOf(place)
	patience := max(endWait, req.Deadline)
	for end := time.Now().Add(patience); ; {
		if err := c.start(ctx, key, t); err != nil {
			return Graft{}, err
		}
		var g Graft
		err := c.call(ctx, key, http.MethodPost, "/v1/grafts", req, &g)
		var status *statusError
		atClient.Pass("answered")
		gone := errors.As(err, &status) && status.code == http.StatusServiceUnavailable || isGone(err)
		if gone && status == nil && c.died(key) {
			return Graft{}, fmt.Errorf("the keeper of pid %d died while it made the graft, which is taken off now: %w", t.PID, err)
		}
		if gone && time.Now().After(end) {
			return Graft{}, fmt.Errorf("the keeper of pid %d has been ending for %v, and another one takes its place when it has: %w. Nothing was grafted: try again, or wait longer with a --deadline of more than that; `faultgraft events` says what it takes off", t.PID, patience, err)
		}
		if !gone {
			return g, saying(err, "The graft is not made, or is taken off again when the keeper goes on")
		}
		// The old keeper was about to end. A new one takes its place in a moment.
		select {
		case <-ctx.Done():
			return Graft{}, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// died tells a keeper that was killed from one that has ended: that takes its
// folder away before another one may start.
func (c *Client) died(key string) bool {
	unlock, err := c.dir().lock(key, startWait)
	if err != nil {
		return false
	}
	defer unlock()
	_, err = os.Stat(c.dir().socket(key))
	return err == nil && !alive(c.dir().socket(key))
}

// admit looks at a target before a keeper is started for it.
func (c *Client) admit(t Target) (graft.Target, error) {
	if err := CheckStopped(c.StateDir); err != nil {
		return graft.Target{}, err
	}
	place, err := graft.CheckTarget(t.PID)
	if err == nil && t.StartTime != 0 && t.StartTime != place.StartTime {
		err = fmt.Errorf("pid %d: the process has ended, another one has its id now", t.PID)
	}
	return place, err
}

// refused puts it on record that nothing was done; a keeper does the same of what it refuses.
func (c *Client) refused(t Target, req Request, why error) error {
	e := Event{
		Type: EventRefused, Target: t.ID, Name: t.Name, By: req.Origin, Who: wire.Self(), Path: req.Path,
		Rules: texts(activate(req.Rules, time.Now())), Message: why.Error(),
	}
	if err := WriteEvent(c.StateDir, e); err != nil && !errors.Is(err, os.ErrPermission) { // somebody who may not graft anyway
		return fmt.Errorf("put the refusal on record: %w", err)
	}
	return nil
}

// start makes sure that the target has a keeper.
func (c *Client) start(ctx context.Context, key string, t Target) error {
	dir := c.dir()
	done, err := c.mayStart(ctx, key)
	if done == nil {
		return err
	}
	defer done()
	t.Labels = shownLabels(t.Labels)
	atClient.Pass("folder")
	target, err := targetFile(t)
	if err != nil {
		return err
	}
	defer func() { _ = target.Close() }()
	log, err := os.OpenFile(dir.log(key), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("keeper's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	cmd := exec.Command(c.executable(), "keeper", "--state-dir", string(dir), "--target", key) // for who looks at processes: the rest is in the file
	cmd.Args[0] = "faultgraft"
	cmd.ExtraFiles = []*os.File{w, target}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	// A session of its own: what ends the daemon's or the user's terminal does not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	atClient.Pass("started")
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // reaps it, should it end before us
	if err := r.SetReadDeadline(time.Now().Add(startWait)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(r).ReadString('\n')
	line = strings.TrimSpace(line)
	if line == "ready" {
		atClient.Pass("ready")
		return nil
	}
	select {
	case <-ended:
	case <-time.After(time.Second):
		_ = cmd.Process.Kill()
	}
	if line != "" {
		return errors.New(line)
	}
	said, _ := os.ReadFile(dir.log(key)) // what there is of it goes into the error
	return fmt.Errorf("the keeper did not start: %w: %s", err, lastLine(said))
}

// mayStart waits until the target has a keeper (done is nil), or it is for the caller to start one, who has the keeper's folder and a turn until it
// calls done. Nobody waits for one of these with the other in hand: many callers may have the same target, or none of theirs.
func (c *Client) mayStart(ctx context.Context, key string) (done func(), err error) {
	dir := c.dir()
	queued, free := dir.turns().queue(), time.Now()
	for pause := firstPause; ; pause = longer(pause) {
		if alive(dir.socket(key)) {
			return nil, nil
		}
		unlock, err := dir.tryLock(key)
		switch {
		case err == nil && alive(dir.socket(key)):
			unlock()
			return nil, nil
		case err == nil:
			free = time.Now()
			if back, ok := queued.try(); ok {
				return func() { back(); unlock() }, nil
			}
			unlock()
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, err
		case time.Since(free) > startWait:
			return nil, dir.locked(key)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (c *Client) executable() string { return cmp.Or(c.Executable, "/proc/self/exe") }

func lastLine(b []byte) string {
	b = bytes.TrimSpace(b)
	return string(b[bytes.LastIndexByte(b, '\n')+1:])
}

// List returns all grafts of all keepers on this node, oldest first.
func (c *Client) List(ctx context.Context) ([]Graft, error) {
	all, err := c.fromEach(func(key string) ([]Graft, error) {
		return c.listOf(ctx, key)
	})
	sort.Slice(all, func(i, j int) bool { return all[i].Since.Before(all[j].Since) })
	return all, err
}

// fromEach asks all keepers at once and joins what they say. One that has ended
// meanwhile has nothing to say; the error of another takes nothing from the rest.
// The answer is nil only where it is not known which keepers there are.
func (c *Client) fromEach(ask func(key string) ([]Graft, error)) ([]Graft, error) {
	keys, err := c.dir().keys()
	if err != nil {
		return nil, err
	}
	all := []Graft{}
	var errs []error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, key := range keys {
		wg.Go(func() {
			grafts, err := ask(key)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && !isGone(err) {
				errs = append(errs, named(key, err))
			}
			all = append(all, grafts...)
		})
	}
	wg.Wait()
	return all, errors.Join(errs...)
}

// Ungraft takes a graft off and returns it with the report of that.
func (c *Client) Ungraft(ctx context.Context, id string) (Graft, error) {
	var g Graft
	err := c.ask(ctx, id, http.MethodDelete, "", nil, &g)
	return g, err
}

// EndIdle has keepers end that hold nothing: one waits for a while for a request that
// whoever started it did not live to send. The error is about those that do not answer.
func (c *Client) EndIdle(ctx context.Context) error {
	_, err := c.fromEach(func(key string) (none []Graft, err error) {
		err = c.callSoon(ctx, key, http.MethodPost, "/v1/end", nil, &none)
		var status *statusError
		if errors.As(err, &status) && status.code == http.StatusNotImplemented {
			err = nil // one of an earlier version: it ends by itself
		}
		return none, err
	})
	return err
}

// Update changes the rules of a graft in place, and returns it with the report
// of the files that had to be moved for that.
func (c *Client) Update(ctx context.Context, id string, change Change) (Graft, error) {
	var g Graft
	err := c.ask(ctx, id, http.MethodPut, "/rules", change, &g)
	return g, err
}

// Find returns a graft.
func (c *Client) Find(ctx context.Context, id string) (Graft, error) {
	_, g, err := c.find(ctx, id)
	return g, err
}

// ask has the keeper of a graft do something with it.
func (c *Client) ask(ctx context.Context, id, method, what string, in, out any) error {
	key, _, err := c.find(ctx, id)
	if err != nil {
		return err
	}
	err = c.call(ctx, key, method, "/v1/grafts/"+id+what, in, out)
	var status *statusError
	if errors.As(err, &status) && status.code == http.StatusNotFound || isGone(err) {
		return fmt.Errorf("%w: %s ended just now", ErrNoGraft, id)
	}
	return saying(err, "What it had begun is brought to its end when it goes on")
}

// find looks for the keeper of a graft.
func (c *Client) find(ctx context.Context, id string) (key string, g Graft, err error) {
	keys, err := c.dir().keys()
	if err != nil {
		return "", Graft{}, err
	}
	type answer struct {
		key    string
		grafts []Graft
		err    error
	}
	answers := make(chan answer, len(keys))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the others need not say anything any more
	for _, key := range keys {
		go func() {
			grafts, err := c.listOf(ctx, key)
			answers <- answer{key, grafts, err}
		}()
	}
	var unknown []error
	for range keys {
		a := <-answers
		if a.err != nil && !isGone(a.err) {
			unknown = append(unknown, named(a.key, a.err))
		}
		for _, g := range a.grafts {
			if g.ID == id {
				return a.key, g, nil
			}
		}
	}
	if len(unknown) > 0 {
		return "", Graft{}, errors.Join(unknown...) // one of them may have it
	}
	return "", Graft{}, fmt.Errorf("%w: %s (see faultgraft ps)", ErrNoGraft, id)
}

// listOf asks one keeper for its grafts.
func (c *Client) listOf(ctx context.Context, key string) (grafts []Graft, err error) {
	err = c.callSoon(ctx, key, http.MethodGet, "/v1/grafts", nil, &grafts)
	return grafts, err
}

// named adds to an error which keeper it is about.
func named(key string, err error) error {
	var silent *SilentError
	if errors.As(err, &silent) {
		return err // it says so itself
	}
	return fmt.Errorf("keeper %s: %w", key, err)
}

type statusError struct {
	code    int
	message string
}

func (e *statusError) Error() string { return e.message }

// Is makes it the ErrStopped that it was in the keeper.
func (e *statusError) Is(target error) bool {
	return target == ErrStopped && e.code == http.StatusLocked
}

// request sends one request to a keeper and waits for its answer as long as ctx allows.
func (c *Client) request(ctx context.Context, key, method, path string, in, out any) error {
	socket := c.dir().socket(key)
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return wire.DialUnix(socket) }}
	defer tr.CloseIdleConnections()
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://keeper"+path, &body)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp, method+" "+path)
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// refusal is what a keeper says that does not do what it is asked for. It may be of another version.
func refusal(resp *http.Response, what string) *statusError {
	version := "faultgraft " + cmp.Or(resp.Header.Get(versionHeader), "of an earlier version")
	const way = "`faultgraft recover` takes its grafts off; new ones are this version's"
	var e apiError
	err := json.NewDecoder(resp.Body).Decode(&e)
	switch code := resp.StatusCode; {
	case err != nil && (code == http.StatusNotFound || code == http.StatusMethodNotAllowed): // by the mux, not by a handler
		return &statusError{http.StatusNotImplemented, fmt.Sprintf("the target's keeper (%s) knows no %s: it runs the version that made its first graft; %s", version, what, way)}
	case err != nil:
		return &statusError{code, "keeper: " + resp.Status}
	case code == http.StatusBadRequest:
		return &statusError{code, fmt.Sprintf("the target's keeper (%s) does not understand this command: %s. It runs the version that made its first graft; %s", version, e.Error, way)}
	default:
		return &statusError{code, e.Error}
	}
}

// isGone says that nobody listens there any more.
func isGone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) ||
		errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func alive(socket string) bool {
	c, err := wire.DialUnix(socket)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
