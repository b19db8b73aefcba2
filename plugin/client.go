package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// ErrNoAgent: no agent answers on the control socket.
var ErrNoAgent = errors.New("no faultgraft agent runs here; start one: `systemctl start faultgraft`, or `faultgraft plugin` by hand")

// maxAnswer bounds what a client reads, bytes.
const maxAnswer = 64 << 20

// Client talks to the agent of this node. Its zero value is not usable; see NewClient.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client for the agent with that state directory; empty means DefaultStateDir.
func NewClient(stateDir string) *Client {
	if stateDir == "" {
		stateDir = DefaultStateDir
	}
	c := &Client{socket: filepath.Join(stateDir, SocketName)}
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // a command asks once or twice
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return wire.DialUnix(c.socket) },
	}}
	return c
}

// Containers lists the containers that the agent knows. A warning is about what the list lacks.
func (c *Client) Containers(ctx context.Context) (list []Container, warning string, err error) {
	var out Containers
	err = c.get(ctx, "/v1/containers", &out)
	return out.Containers, out.Warning, err
}

// Health asks how the agent does.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	err := c.get(ctx, "/v1/healthz", &h)
	return h, err
}

// Config gives the configuration that is in force, with its defaults.
func (c *Client) Config(ctx context.Context) (Config, error) {
	var out Config
	err := c.get(ctx, "/v1/config", &out)
	return out, err
}

// Metrics gives the agent's metrics in the text format of Prometheus.
func (c *Client) Metrics(ctx context.Context) (string, error) {
	b, err := c.fetch(ctx, "/metrics")
	return string(b), err
}

// Find gives the container that ref means as a target; see Resolve for what ref can be.
func (c *Client) Find(ctx context.Context, ref string) (keeper.Target, error) {
	all, _, err := c.Containers(ctx)
	if err != nil {
		return keeper.Target{}, err
	}
	m, err := match(all, ref)
	if err != nil {
		return keeper.Target{}, err
	}
	// The agent may have heard of it before its process could be looked at.
	start, err := checkProcess(m.PID)
	if err != nil {
		return keeper.Target{}, fmt.Errorf("container %s (%s): %w", m.DisplayName(), m.Key, err)
	}
	if m.StartTime != 0 && m.StartTime != start {
		return keeper.Target{}, fmt.Errorf("container %s (%s) has just been restarted; try again", m.DisplayName(), m.Key)
	}
	m.StartTime = start
	return m.target()
}

func (c *Client) get(ctx context.Context, path string, out any) error {
	b, err := c.fetch(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("faultgraft agent at %s: %s: %w", c.socket, path, err)
	}
	return nil
}

func (c *Client) fetch(ctx context.Context, path string) ([]byte, error) {
	return c.do(ctx, http.MethodGet, path, nil)
}

func (c *Client) do(ctx context.Context, method, path string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://faultgraft"+path, body)
	if err != nil {
		return nil, err
	}
	return c.send(req)
}

func (c *Client) send(req *http.Request) ([]byte, error) {
	path := req.URL.RequestURI()
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%s: %w", c.socket, ErrNoAgent)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return nil, fmt.Errorf("%s: the agent hung up; only root may talk to it: %w", c.socket, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", c.socket, err)
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", c.socket, path, err)
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("%s: %s: an answer of more than %d bytes", c.socket, path, maxAnswer)
	}
	var said apiError
	if resp.StatusCode != http.StatusOK && json.Unmarshal(b, &said) == nil && said.Error != "" {
		err := errors.New(said.Error) // whole, for a person
		if strings.HasPrefix(said.Error, "request: json: unknown field") {
			err = fmt.Errorf("the agent at %s does not understand this command: %w: it is of another version; restart it (systemctl restart faultgraft), grafts stay", c.socket, err)
		}
		switch resp.StatusCode {
		case http.StatusNotFound:
			err = &answerError{err, []error{ErrNoKernelFault, ErrNotStopped, ErrNoPolicy}}
		case http.StatusLocked:
			err = &answerError{err, []error{keeper.ErrStopped}}
		}
		return nil, err
	}
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed { // by the mux, not by a handler
		return nil, fmt.Errorf("the agent at %s knows no %s %s: it is of an earlier version than this command; restart it (systemctl restart faultgraft), grafts stay", c.socket, req.Method, path)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s: %s", c.socket, path, resp.Status, strings.TrimSpace(string(b)))
	}
	return b, nil
}
