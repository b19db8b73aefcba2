package plugin

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// Ready: each thing that is missing is named, with 503; what was not asked for is not missing.
func TestReadiness(t *testing.T) {
	a := &agent{opts: Options{StateDir: t.TempDir(), DisableNRI: true}, metrics: newMetrics("")}
	a.nri.gauge, a.containerd.gauge = a.metrics.connected.WithLabelValues(sourceNRI), a.metrics.connected.WithLabelValues(sourceContainerd)
	mux := http.NewServeMux()
	healthRoutes(mux, a.health, a.readiness)
	ask := func(want int, missing ...string) {
		t.Helper()
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		var r Readiness
		if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || w.Code != want || r.Ready != (want == http.StatusOK) {
			t.Errorf("%d %s: %v", w.Code, w.Body, err)
		}
		var bad []string
		for _, c := range r.Checks {
			if !c.OK {
				bad = append(bad, c.Name)
				if c.Reason == "" {
					t.Errorf("%s: no reason", c.Name)
				}
			}
		}
		if strings.Join(bad, " ") != strings.Join(missing, " ") {
			t.Errorf("missing %q, want %q", bad, missing)
		}
	}
	a.containerd.set(false, errConnecting)
	ask(http.StatusServiceUnavailable, "containerd")
	a.containerd.set(true, nil)
	ask(http.StatusOK)
	a.opts.DisableNRI = false
	ask(http.StatusServiceUnavailable, "nri")
	a.nri.set(true, nil)
	ask(http.StatusOK)
	if err := keeper.SetAudit(a.opts.StateDir, keeper.Audit{File: "/proc/nothing/audit"}); err != nil {
		t.Fatal(err)
	}
	ask(http.StatusServiceUnavailable, "auditLog")
	a.opts.StateDir = filepath.Join(a.opts.StateDir, "gone")
	ask(http.StatusServiceUnavailable, "stateDir")
}

// The listener answers GET of three things, and nothing else.
func TestListenerIsReadOnly(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	l := newListener("127.0.0.1:0", b.metrics, func() Health { return Health{OK: true} }, func() Readiness { return Readiness{Ready: true} }, b.log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.run(ctx) }()
	defer func() { cancel(); <-done }()
	until(t, "the listener listens", func() bool { return l.trouble() == nil })
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/metrics", 200}, {"GET", "/healthz", 200}, {"GET", "/readyz", 200},
		{"POST", "/metrics", 405}, {"DELETE", "/readyz", 405}, {"GET", "/v1/containers", 404}, {"POST", "/v1/stop", 404}, {"GET", "/v1/kernel", 404}, {"GET", "/", 404},
	} {
		l.mu.Lock()
		address := l.addr
		l.mu.Unlock()
		req, err := http.NewRequestWithContext(ctx, c.method, "http://"+address+c.path, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s %s: %d, want %d: %s", c.method, c.path, resp.StatusCode, c.want, body)
		}
		if c.path == "/metrics" && c.want == 200 && !strings.Contains(string(body), "faultgraft_build_info{") {
			t.Errorf("metrics: %.200s", body)
		}
	}
	// A port that is taken is tried again, and told.
	second := newListener(l.addr, b.metrics, nil, nil, b.log)
	if err := second.serve(ctx); err == nil {
		t.Error("two listeners on one port")
	}
}

func TestCheckListen(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:9464": "", "[::1]:9464": "", "localhost:9464": "", "127.0.0.2:0": "",
		"0.0.0.0:9464": "other machines", ":9464": "other machines", "10.1.2.3:1": "other machines", "[::]:9": "other machines",
		"127.0.0.1": "ADDRESS:PORT", "node.example:9464": "IP address", "127.0.0.1:": "ADDRESS:PORT",
	} {
		err := checkListen(address, false)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
	if err := checkListen("0.0.0.0:9464", true); err != nil {
		t.Error(err)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{"4KiB": 4096, "16MiB": 16 << 20, "2GiB": 2 << 30, "1KiB": 0, "16": 0, "16MB": 0, "-1MiB": 0, "1.5MiB": 0, "99999999999GiB": 0} {
		var s Size
		err := s.UnmarshalText([]byte(text))
		if (err == nil) != (want > 0) || int64(s) != want {
			t.Errorf("%s: %d, %v", text, s, err)
		}
		if b, merr := s.MarshalText(); err == nil && (merr != nil || string(b) != text) {
			t.Errorf("%s is written as %s, %v", text, b, merr)
		}
	}
}

// log.format is json also for an agent that was started by hand.
func TestLogFormat(t *testing.T) {
	var a agent
	a.openLogger(true)
	dir := t.TempDir()
	if err := a.applyLog(Config{Log: LogConfig{Format: "json"}}, dir); err != nil {
		t.Fatal(err)
	}
	a.log.Info("a line", "key", "value")
	a.closeLog()
	b, err := os.ReadFile(filepath.Join(dir, LogName))
	var line struct{ Msg, Key string }
	if err == nil {
		err = json.Unmarshal(b, &line)
	}
	if err != nil || line.Msg != "a line" || line.Key != "value" {
		t.Errorf("%q: %v", b, err)
	}
}
