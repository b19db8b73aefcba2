package policies

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCorruptFileIsSetAside(t *testing.T) {
	for _, text := range []string{"", "{", `{"version":2}`, `{"version":1,"policies":[{"phase":"runing"}]}`, `{"version":1} {}`, `{"version":1,"more":1}`} {
		n := newNode(t)
		path := filepath.Join(n.dir, FileName)
		n.must(os.WriteFile(path, []byte(text), 0o600))
		n.open()
		if got := n.types(); !slices.Equal(got, []EventType{EventLost}) {
			t.Errorf("%q: events %v", text, got)
		}
		aside, err := filepath.Glob(path + ".corrupt-*")
		n.must(err)
		if len(aside) != 1 {
			t.Fatalf("%q: set aside %v", text, aside)
		}
		if kept, err := os.ReadFile(aside[0]); err != nil || string(kept) != text {
			t.Errorf("%q: what was set aside is %q, %v", text, kept, err)
		}
		n.run("a")
		n.apply(pg())
		if st := n.phase("pg", Running); st.Run <= 1_000_000 {
			t.Errorf("its run has number %d, which an earlier one may have had", st.Run)
		}
		n.open()
		n.phase("pg", Running)
	}
}

// A file that an earlier version wrote is read; testdata has one for each form that there was.
func TestFileOfEarlierVersions(t *testing.T) {
	n := newNode(t)
	b, err := os.ReadFile("testdata/policies-1.json")
	n.must(err)
	n.must(os.WriteFile(filepath.Join(n.dir, FileName), b, 0o600))
	n.open()
	if st := n.phase("wal", Pending); st.Seed != 9668690644094181298 || len(n.types()) != 0 {
		t.Errorf("%+v, events %v", st, n.types())
	}
}

// A file of a later version is not taken for a torn one.
func TestFileOfALaterVersion(t *testing.T) {
	if _, err := parseFile([]byte(`{"version":2,"what":"came later"}`)); err == nil || !strings.Contains(err.Error(), "later version of faultgraft") {
		t.Error(err)
	}
}

func TestUnwritableFileIsAnError(t *testing.T) {
	n := newNode(t)
	n.must(os.Mkdir(filepath.Join(n.dir, FileName), 0o700))
	if _, err := Open(n.dir, n.options()); err == nil || !strings.Contains(err.Error(), FileName) {
		t.Errorf("a file that cannot be read: %v", err)
	}
}

// FuzzFile: no file makes a policy run without an end, or the store fail in
// another way than by an error; what was read is written so that it reads the same.
func FuzzFile(f *testing.F) {
	n := newNode(f)
	n.run("a")
	n.apply(pg())
	n.apply(named("cron", pg(scheduled("replace", 60e9))))
	text, err := os.ReadFile(filepath.Join(n.dir, FileName))
	n.must(err)
	f.Add(text)
	f.Add([]byte(`{"version":1,"written":"2026-11-25T12:00:00Z","runs":{"a":3},"firstRun":2,"policies":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		form, err := parseFile(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(form)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseFile(again); err != nil {
			t.Fatalf("%s\nis written as\n%s\nwhich does not read: %v", b, again, err)
		}
		n := newNode(t)
		n.must(os.WriteFile(filepath.Join(n.dir, FileName), b, 0o600))
		n.open()
		n.run("a")
		n.boot += 365 * 24 * 60 * 60 * 1e9 // longer than the longest ttl
		if rules := n.has("a"); len(rules) > 0 {
			t.Fatalf("after a year there is %v of\n%s", rules, b)
		}
		n.tick()
	})
}
