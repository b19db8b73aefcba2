package keeper

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/test/requests"
)

// A target that does operations without end, on names as long as they get, does not fill the
// state directory, which is in memory; each event is one whole line, and the newest are there.
func TestEventLogIsBounded(t *testing.T) {
	dir := t.TempDir()
	var logs [2]*EventLog // of two processes
	for i := range logs {
		l, err := OpenEventLog(dir)
		if err != nil {
			t.Fatal(err)
		}
		l.limit = 1 << 20
		defer func() { _ = l.Close() }()
		logs[i] = l
	}
	path := "/" + strings.Repeat("\x01", 1000)
	for n := range 3000 { // 6 KiB each in JSON
		if err := logs[n%2].Write(Event{Type: EventFault, Path: path, N: uint64(n)}); err != nil {
			t.Fatal(err)
		}
	}
	var size int64
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if i, err := f.Info(); err == nil && strings.HasPrefix(f.Name(), "events") {
			size += i.Size()
		}
	}
	if most := int64(2<<20 + 4*2*sizeCheck); size > most {
		t.Errorf("the log has %d bytes in all, which should be %d at most", size, most)
	}
	last := uint64(0)
	err = ReadEvents(context.Background(), dir, false, func(e Event) error {
		if e.Type != EventFault {
			t.Errorf("%+v", e)
		}
		last = max(last, e.N)
		return nil
	})
	if err != nil || last != 2999 {
		t.Errorf("the last event is %d, %v", last, err)
	}
}

// Faults wait for the disk in memory: so many, and no more bytes than that of names that the target chooses.
func TestFaultQueueIsBounded(t *testing.T) {
	f := &faultLog{wake: make(chan struct{}, 1)} // nobody writes
	for range faultQueue {
		f.record(fusefs.Event{Path: strings.Repeat("x", 4096)})
	}
	if f.bytes > faultQueueBytes+4096 || f.lost == 0 || f.lost+uint64(len(f.queue)) != faultQueue {
		t.Errorf("%d bytes in %d events, %d lost", f.bytes, len(f.queue), f.lost)
	}
}

// A file of the state directory that cannot be understood is set aside, reported, and not believed.
func TestCorruptStateIsSetAside(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "half": `{"file":"/`, "array": "[]", "number": `{"maxSize":"x"}`, "binary": "\x00\xff\xfe"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := stateDir(dir)
			if err := os.WriteFile(d.auditConfig(), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			a, err := ReadAudit(dir)
			if err != nil || a.File != d.audit() {
				t.Errorf("the audit log goes to %q, %v", a.File, err)
			}
			if err := os.MkdirAll(d.ended(), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(d.endedFile("g-1"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			good := EndedGraft{Graft: "g-2", Faults: []FaultCount{{Rule: "r", Count: 1}}}
			if err := d.saveEnded(good); err != nil {
				t.Fatal(err)
			}
			c := &Client{StateDir: dir}
			got, err := c.Ended()
			if len(got) != 1 || got[0].Graft != "g-2" || err == nil || !strings.Contains(err.Error(), "set aside as "+d.endedFile("g-1")+".corrupt-") {
				t.Errorf("counts %v, error %v", got, err)
			}
			if got, err = c.Ended(); len(got) != 1 || err != nil {
				t.Errorf("the second time: %v, %v", got, err)
			}
			for _, f := range []string{d.auditConfig(), d.endedFile("g-1")} {
				aside, _ := filepath.Glob(f + ".corrupt-*")
				if len(aside) != 1 {
					t.Fatalf("%s: set aside %v", f, aside)
				}
				if b, err := os.ReadFile(aside[0]); err != nil || string(b) != text {
					t.Errorf("%s: %q, %v", aside[0], b, err)
				}
			}
			told := false
			err = ReadEvents(context.Background(), dir, false, func(e Event) error {
				told = told || e.Type == EventLost && strings.Contains(e.Message, "audit.json")
				return nil
			})
			if err != nil || !told {
				t.Errorf("the events say nothing of it (%v)", err)
			}
			// A marker that says that the node is stopped, and cannot be read, is a stop.
			if err := os.WriteFile(d.stopped(), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := CheckStopped(dir); err == nil {
				t.Error("faults may start with a marker that cannot be read")
			}
		})
	}
}

// FuzzState: no file of the state directory makes its reader fail in another way than by an error.
func FuzzState(f *testing.F) {
	for _, s := range []string{`{"graft":"g","target":{"pid":1},"faults":[{"rule":"r","count":1}]}`, `{"file":"/x","maxSize":1,"maxFiles":-1}`,
		`{"reason":"r","since":"2026-11-26T00:00:00Z","grafts":["../../x"]}`, `{"time":"x","type":"fault"}`, "{", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		d := stateDir(dir)
		if err := os.MkdirAll(d.ended(), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{d.auditConfig(), d.endedFile("g"), d.stopped(), d.events()} {
			if err := os.WriteFile(name, append(b, '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := &Client{StateDir: dir}
		ended, err := c.Ended()
		for _, e := range ended {
			if e.Graft != "g" {
				t.Errorf("counts of %q in the file of g", e.Graft)
			}
		}
		if len(ended) == 0 && err == nil {
			t.Error("counts were dropped without a word")
		}
		if _, err := ReadStopped(dir); err == nil && CheckStopped(dir) == nil {
			t.Error("a marker that is there stops nothing")
		}
		if a, err := ReadAudit(dir); err == nil && (a.File == "" || a.MaxSize <= 0 || a.MaxFiles <= 0) {
			t.Errorf("audit %+v", a)
		}
		if err := ReadEvents(context.Background(), dir, false, func(Event) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}

// A keeper is told of its target in an argument: labels and annotations of any size fit.
func TestLongLabelsFit(t *testing.T) {
	for _, all := range []map[string]string{nil, {"a": strings.Repeat("x", 1<<20), "b": "kept"}, many(10000)} {
		shown := shownLabels(all)
		b, err := json.Marshal(Target{ID: "a", Labels: shown})
		if err != nil || len(b) >= 128<<10 {
			t.Errorf("%d labels make %d bytes, %v", len(all), len(b), err)
		}
		if all["b"] != shown["b"] {
			t.Errorf("a short label is not shown: %v", shown)
		}
	}
}

func many(n int) map[string]string {
	all := map[string]string{}
	for i := range n {
		all[strings.Repeat("k", i%60)+string(rune('a'+i%26))] = strings.Repeat("\x01", i%100)
	}
	return all
}

// What is sent to a keeper's socket in a wrong form is answered with an error, or hung up on; half a
// request holds nothing up, and ids that are paths lead nowhere.
func TestHostileRequests(t *testing.T) {
	dir := t.TempDir()
	k := &keeper{dir: stateDir(dir), grafts: map[string]*held{}, ended: make(chan struct{})}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: k.routes(), ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	go func() { _ = srv.Serve(l) }()
	defer func() { _ = srv.Close() }()
	all := requests.Hostile("/v1/grafts", "path", "/v1/grafts/")
	all["rules of none"] = requests.Request{Method: "PUT", Path: "/v1/grafts/g-0/rules", Body: `{}`}
	requests.Refused(t, l.Addr().String(), all, "/v1/grafts")
}
