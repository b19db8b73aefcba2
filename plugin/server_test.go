package plugin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// The exits of dialAsStranger.
const (
	strangerRefused  = 0 // connected, and not a byte came back
	strangerKeptOut  = 10
	strangerAnswered = 11
	strangerBroken   = 12
)

// dialAsStranger is this test binary run as another user: it asks the control socket for the containers.
func dialAsStranger(path string) int {
	if err := errors.Join(syscall.Setresgid(65534, 65534, 65534), syscall.Setresuid(65534, 65534, 65534)); err != nil {
		return strangerBroken
	}
	c, err := net.Dial("unix", path)
	if errors.Is(err, os.ErrPermission) {
		return strangerKeptOut
	}
	if err != nil {
		return strangerBroken
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Write([]byte("GET /v1/containers HTTP/1.1\r\nHost: x\r\n\r\n")) // may fail: it is hung up on
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := c.Read(make([]byte, 1))
	switch {
	case n > 0:
		return strangerAnswered
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return strangerRefused
	}
	return strangerBroken
}

// serveBench answers a bench's control socket in a directory that everybody can enter.
func serveBench(t *testing.T, b *bench, log *slog.Logger) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "faultgraft-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	s := &server{loop: b.reconciler, log: log, health: func() Health { return Health{OK: true, PID: os.Getpid()} }}
	go func() { ended <- s.serve(ctx, dir, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, SocketName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket file is left: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	return dir
}

func TestOnlyRootIsServed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: becomes another user")
	}
	var logged bytes.Buffer
	b := newBench(t, &node{}, t.TempDir(), nil)
	dir := serveBench(t, b, slog.New(slog.NewTextHandler(&logged, nil)))
	path := filepath.Join(dir, SocketName)
	ask := func() int {
		t.Helper()
		cmd := exec.Command("/proc/self/exe", "dial-control-socket", path)
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode()
	}
	if got := ask(); got != strangerKeptOut {
		t.Errorf("the socket's mode lets another user connect: %d", got)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got != strangerRefused {
		t.Errorf("another user was not refused unread: %d", got)
	}
	if _, err := NewClient(dir).Health(t.Context()); err != nil {
		t.Errorf("root is refused: %v", err)
	}
	if !strings.Contains(logged.String(), "uid=65534") {
		t.Errorf("the refusal is not in the log: %s", logged.String())
	}
}

func TestControlSocket(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	dir := serveBench(t, b, b.log)
	client := NewClient(dir)
	if list, _, err := client.Containers(t.Context()); err != nil || list == nil || len(list) != 0 {
		t.Errorf("no containers: %v, %v", list, err)
	}
	for _, c := range []Container{
		labelled("a", map[string]string{"wal.faultgraft.io": dataRule}),
		labelled("bad", map[string]string{"wal.faultgraft.io": "io nonsense"}),
		{Key: Key{"default", "plain"}, Name: "plain", Source: sourceContainerd},
	} {
		b.reg.put(c)
		b.settle(t, c.Key)
	}
	states := func() map[string]State {
		list, warning, err := client.Containers(t.Context())
		if err != nil || warning != "" {
			t.Fatal(warning, err)
		}
		m := map[string]State{}
		for _, c := range list {
			m[c.ID] = c.State
			if c.State == StateActive && len(c.Grafts) != 1 {
				t.Errorf("grafts of %s: %v", c.ID, c.Grafts)
			}
		}
		return m
	}
	if got := states(); len(got) != 3 || got["a"] != StateActive || got["bad"] != StateRefused || got["plain"] != StateNone {
		t.Errorf("%v", got)
	}
	text, err := client.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`faultgraft_containers{state="active"} 1`, `faultgraft_containers_seen_total{source="containerd"} 3`,
		`faultgraft_problems_total{kind="label"} 1`, `faultgraft_graft_operations_total{result="made"} 1`,
		`faultgraft_pause_seconds_count{operation="graft"} 1`, `faultgraft_process_pause_seconds_count{operation="graft"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	// A graft that a person took off a moment ago is not shown as active.
	if _, err := n.Ungraft(t.Context(), "g1"); err != nil {
		t.Fatal(err)
	}
	if got := states(); got["a"] != StateNone {
		t.Errorf("%v", got)
	}
	// One that a person made is.
	user := policyRule(t, "io error=EIO op=write path=/u/** ttl=5m seed=1")
	if _, err := n.Inject(t.Context(), keeper.Target{ID: "pid", PID: os.Getpid(), StartTime: b.get(Key{"default", "a"}).StartTime},
		keeper.Request{Path: "/u", Rules: []policy.Rule{user}, Origin: keeper.OriginUser}); err != nil {
		t.Fatal(err)
	}
	if got := states(); got["a"] != StateActive {
		t.Errorf("%v", got)
	}
	// The grafts of keepers that answer are shown when others do not.
	n.mu.Lock()
	n.broken = errTest
	n.mu.Unlock()
	list, warning, err := client.Containers(t.Context())
	if err != nil || !strings.Contains(warning, errTest.Error()) || len(list) != 3 || len(list[0].Grafts) != 1 {
		t.Errorf("%+v, warning %q, %v", list, warning, err)
	}
}

func TestControlSocketAnswersItsPathsOnly(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	h := (&server{loop: b.reconciler, log: b.log, health: func() Health { return Health{} }}).handler()
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/v1/healthz", 200}, {"GET", "/metrics", 200}, {"POST", "/v1/containers", 405}, {"DELETE", "/metrics", 405}, {"GET", "/", 404}, {"GET", "/v1/../etc", 307},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://x"+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		w := &recorder{header: http.Header{}}
		h.ServeHTTP(w, req)
		if w.code != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, w.code, c.want)
		}
	}
}

type recorder struct {
	header http.Header
	code   int
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
	}
}

func (r *recorder) Write(b []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return len(b), nil
}

func TestNoAgent(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := NewClient(dir).Containers(t.Context()); !errors.Is(err, ErrNoAgent) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as a killed agent leaves it
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(dir).Find(t.Context(), "x"); !errors.Is(err, ErrNoAgent) {
		t.Errorf("stale socket: %v", err)
	}
}
