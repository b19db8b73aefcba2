package plugin

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// The files in testdata were written by earlier versions, each with the form in its name. When a form changes, a file
// of the new one is added, and those that are there stay: the next version is to read them.

func TestMemoryOfEarlierVersions(t *testing.T) {
	b, err := os.ReadFile("testdata/daemon-1.json")
	if err != nil {
		t.Fatal(err)
	}
	form, err := parseMemory(b)
	if err != nil || len(form.Tasks) != 1 || form.Tasks[0].Key != (Key{"default", "0f5e3c"}) || form.Tasks[0].PID != 4711 || form.Tasks[0].StartTime != 99 {
		t.Fatalf("%+v, %v", form, err)
	}
	rules := map[string]appliedRule{}
	for _, r := range form.Tasks[0].Rules {
		rules[r.Name] = r
	}
	if r := rules["wal"]; !r.Done || r.Graft != "g-29ab4016" || r.Text != "io error=EIO op=read path=/data/** ttl=5m" || !r.Since.Equal(time.Unix(1795678998, 0)) {
		t.Errorf("%+v", r)
	}
	if r := rules["slow"]; r.Done || r.Policy != "pg" || r.Run != 3 {
		t.Errorf("%+v", r)
	}
	if r := rules["oom"]; !r.Kernel || !r.Over {
		t.Errorf("%+v", r)
	}
}

func TestLedgerOfEarlierVersions(t *testing.T) {
	b, err := os.ReadFile("testdata/counters-1.json")
	if err != nil {
		t.Fatal(err)
	}
	form, err := parseLedger(b)
	if err != nil || len(form.Faults) != 1 || form.Faults[0].N != 1 || form.Faults[0].Errno != "EIO" || len(form.Containers) != 1 || len(form.Folded) != 1 {
		t.Errorf("%+v, %v", form, err)
	}
}

// A file of a later version is not taken for a torn one: what it is is said, and it is kept for who can read it.
func TestFilesOfALaterVersion(t *testing.T) {
	for name, load := range map[string]func(dir string) (warning, err error){
		memoryFile: func(dir string) (error, error) {
			_, warning, err := loadMemory(dir, time.Now())
			return warning, err
		},
		countersFile: func(dir string) (error, error) {
			_, warning, err := loadLedger(dir, nil, nil, slog.New(slog.DiscardHandler), time.Now)
			return warning, err
		},
	} {
		dir := t.TempDir()
		const text = `{"version":2,"what":"came later"}`
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		warning, err := load(dir)
		if err != nil || warning == nil || !strings.Contains(warning.Error(), "of a later version of faultgraft") {
			t.Errorf("%s: warning %v, error %v", name, warning, err)
		}
		aside, err := filepath.Glob(filepath.Join(dir, name+".corrupt*"))
		if err != nil || len(aside) != 1 {
			t.Fatalf("%s: set aside %v, %v", name, aside, err)
		}
		if kept, err := os.ReadFile(aside[0]); err != nil || string(kept) != text {
			t.Errorf("%s: %q, %v", name, kept, err)
		}
	}
}

// A command that asks an agent of another version hears that, and what to do.
func TestAgentOfAnotherVersion(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/start", func(w http.ResponseWriter, r *http.Request) {
		var earlier struct {
			Namespace string `json:"namespace"`
			ID        string `json:"id"`
		}
		if err := keeper.DecodeStrictly(r.Body, &earlier); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(apiError{Error: "request: " + err.Error()})
		}
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	c := NewClient(t.TempDir())
	c.http = s.Client()
	ask := func(method, path, body string) error {
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.send(req)
		return err
	}
	for what, err := range map[string]error{
		"knows no GET /v1/policies":                                   ask(http.MethodGet, "/v1/policies", ""),
		"knows no DELETE /v1/start":                                   ask(http.MethodDelete, "/v1/start", ""),
		`does not understand this command: request: json: unknown fi`: ask(http.MethodPost, "/v1/start", `{"id":"a","later":1}`),
	} {
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "restart it") {
			t.Errorf("%q: %v", what, err)
		}
	}
}

// A fault that a later version pinned is listed beside those of this one, goes on when it cannot be taken over, and can be ended.
func TestKernelFaultOfALaterVersion(t *testing.T) {
	foreign := kernel.Pinned{
		ID: "k-00000002", Cgroup: kernel.Cgroup{ID: 8, Level: 2, Path: "/default/fedcba"}, Started: time.Now(), Ends: time.Now().Add(time.Minute),
		Foreign: os.ErrInvalid,
	}
	rule := policyRule(t, slabRule)
	rule.Name = "left"
	k := &fakeKernel{pinned: []kernel.Pinned{foreign, {
		ID: "k-00000001", Rule: rule, Cgroup: kernel.Cgroup{ID: 7, Level: 2, Path: "/default/abcdef"}, Started: time.Now(), Ends: time.Now().Add(time.Minute),
	}}}
	b := kernelBench(t, k, &node{}, t.TempDir(), nil)
	if err := b.faults.adopt(); err == nil || !strings.Contains(err.Error(), foreign.ID) || !strings.Contains(err.Error(), "faultgraft recover "+foreign.ID) {
		t.Errorf("taken over: %v", err)
	}
	wantLive(t, k, "left@7")
	srv := httptest.NewServer((&server{loop: b.reconciler, log: slog.New(slog.DiscardHandler)}).handler())
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL + "/v1/kernel")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var all []KernelFault
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || all[1].ID != foreign.ID || all[1].State != keeper.StateActive || !strings.Contains(all[1].Kernel.Note, "not counted") {
		t.Errorf("listed: %+v", all)
	}
	if err := b.faults.close(); err != nil {
		t.Fatal(err)
	}
}
