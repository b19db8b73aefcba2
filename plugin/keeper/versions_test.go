package keeper

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/plugin/wire"
)

// answering serves a handler as the only keeper of a state directory.
func answering(t *testing.T, h http.Handler) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &Client{StateDir: dir}
	if err := os.MkdirAll(c.dir().keeper("k"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := wire.ListenRoot(c.dir().socket("k"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return c
}

// What a keeper does not know is told as that, with its version and what to do: also an earlier one's, that does not say its version.
func TestKeeperOfAnotherVersion(t *testing.T) {
	this := (&keeper{o: Options{Version: "v1.2.3"}, grafts: map[string]*held{}}).routes()
	earlier := http.NewServeMux()
	earlier.HandleFunc("GET /v1/grafts", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`[{"id":"g-1","target":{"id":"pid-1","pid":1},"path":"/d","state":"active","since":"2026-11-26T07:23:18Z","rules":[],"more":{"that":"came later"}}]`))
	})
	earlier.HandleFunc("PUT /v1/grafts/{id}/rules", func(w http.ResponseWriter, r *http.Request) {
		var c struct{ Keep bool }
		if decode(w, r, &c) {
			answer(w, http.StatusOK, Graft{ID: r.PathValue("id")})
		}
	})
	for version, h := range map[string]http.Handler{"v1.2.3": this, "of an earlier version": earlier} {
		c := answering(t, h)
		for what, err := range map[string]error{
			"knows no PATCH /v1/grafts": c.call(t.Context(), "k", http.MethodPatch, "/v1/grafts", nil, nil),
			"knows no GET /v1/later":    c.call(t.Context(), "k", http.MethodGet, "/v1/later", nil, nil),
			`unknown field "later"`:     c.call(t.Context(), "k", http.MethodPut, "/v1/grafts/g-1/rules", map[string]int{"later": 1}, nil),
		} {
			if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "(faultgraft "+version+")") || !strings.Contains(err.Error(), "faultgraft recover") {
				t.Errorf("a keeper %s: %v; want %q", version, err, what)
			}
		}
	}
	c := answering(t, earlier)
	grafts, err := c.List(t.Context())
	if err != nil || len(grafts) != 1 || grafts[0].ID != "g-1" || grafts[0].Version != "" {
		t.Errorf("what an earlier version lists: %+v, %v", grafts, err)
	}
	// Not "no such graft", which is what 404 means between two that know each other.
	if err := c.EndIdle(context.Background()); err != nil {
		t.Errorf("a keeper that cannot be told to end if it is idle ends by itself: %v", err)
	}
	if err := c.ask(t.Context(), "g-1", http.MethodPost, "/later", nil, nil); err == nil || strings.Contains(err.Error(), ErrNoGraft.Error()) {
		t.Errorf("something that an earlier version cannot do: %v", err)
	}
}

func TestCheckForm(t *testing.T) {
	for text, want := range map[string]struct {
		version int
		err     string
	}{
		`{}`: {0, ""}, `{"version":1}`: {1, ""}, `{"version":2,"x":[]}`: {2, ""}, `{"version":3,"x":[]}`: {3, "its form is 3, of a later version of faultgraft; this one knows 2"},
		`{"version":"1"}`: {0, "cannot unmarshal"}, `[]`: {0, "cannot unmarshal"}, ``: {0, "unexpected end"},
	} {
		v, err := checkForm([]byte(text), 2)
		if v != want.version || (err == nil) != (want.err == "") || err != nil && !strings.Contains(err.Error(), want.err) {
			t.Errorf("%s: %d, %v", text, v, err)
		}
	}
}

// The counts of a graft that an earlier version wrote are read; those of a later one are set aside, and told.
func TestEndedOfOtherVersions(t *testing.T) {
	c := &Client{StateDir: t.TempDir()}
	if err := os.MkdirAll(c.dir().ended(), 0o700); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile("testdata/ended-before-versions.json")
	if err != nil {
		t.Fatal(err)
	}
	var e EndedGraft
	if err := json.Unmarshal(old, &e); err != nil {
		t.Fatal(err)
	}
	later := strings.Replace(strings.Replace(string(old), "{", `{"version":9,`, 1), e.Graft, "g-later", 1)
	for id, text := range map[string]string{e.Graft: string(old), "g-later": later} {
		if err := os.WriteFile(c.dir().endedFile(id), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := c.Ended()
	if len(all) != 1 || all[0].Graft != e.Graft || len(all[0].Faults) != 1 || all[0].Faults[0].Count != 1 || all[0].Faults[0].Errno != "EIO" {
		t.Errorf("of an earlier version: %+v", all)
	}
	aside, gerr := filepath.Glob(c.dir().endedFile("g-later") + ".corrupt-*")
	if err == nil || !strings.Contains(err.Error(), "later version") || gerr != nil || len(aside) != 1 {
		t.Errorf("of a later version: %v, set aside: %v %v", err, aside, gerr)
	}
}
