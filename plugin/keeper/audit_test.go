package keeper

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// auditLines reads a log with all that was moved aside, the oldest first.
func auditLines(t *testing.T, file string) (all []Event) {
	t.Helper()
	files := []string{file}
	for i := 1; ; i++ {
		name := fmt.Sprintf("%s.%d", file, i)
		if _, err := os.Stat(name); err != nil {
			break
		}
		files = append([]string{name}, files...)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		s := bufio.NewScanner(f)
		for s.Scan() {
			var e Event
			if err := json.Unmarshal(s.Bytes(), &e); err != nil {
				t.Fatalf("%s: %q: %v", name, s.Text(), err)
			}
			all = append(all, e)
		}
		_ = f.Close()
	}
	return all
}

// auditWriter is a process of its own that writes entries; see TestMain.
func auditWriter(dir, who string, n int) error {
	l, err := OpenEventLog(dir)
	if err != nil {
		return err
	}
	for i := range n {
		if err := l.Write(Event{Type: EventGraft, Graft: who, N: uint64(i), Message: strings.Repeat("m", 300)}); err != nil {
			return err
		}
	}
	return l.Close()
}

// Processes that write at once lose no entry over rotations, and as many files are kept as asked for.
func TestAuditOfSeveralProcesses(t *testing.T) {
	dir := t.TempDir()
	a := Audit{File: filepath.Join(t.TempDir(), "kept", "audit.jsonl"), MaxSize: 8 << 10, MaxFiles: 1000}
	if err := SetAudit(dir, a); err != nil {
		t.Fatal(err)
	}
	const writers, each = 4, 100
	var running []*exec.Cmd
	for w := range writers {
		cmd := exec.Command("/proc/self/exe", "audit-writer", dir, fmt.Sprint("g-", w), fmt.Sprint(each))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		running = append(running, cmd)
	}
	for _, cmd := range running {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	next := map[string]uint64{}
	for _, e := range auditLines(t, a.File) {
		if e.N != next[e.Graft] {
			t.Fatalf("%s: entry %d after %d", e.Graft, e.N, next[e.Graft])
		}
		next[e.Graft]++
	}
	for w := range writers {
		if n := next[fmt.Sprint("g-", w)]; n != each {
			t.Errorf("writer %d: %d entries of %d", w, n, each)
		}
	}
	if files, err := filepath.Glob(a.File + ".*"); err != nil || len(files) < 5 {
		t.Errorf("it was not rotated: %v, %v", files, err)
	}
	// By its reader: a writer that finds another one in the middle of a line ends it, which may leave an empty line.
	events := 0
	if err := ReadEvents(t.Context(), dir, false, func(e Event) error {
		if events++; e.Type != EventGraft { // EventLost for a line that is torn
			t.Errorf("%+v", e)
		}
		return nil
	}); err != nil || events != writers*each {
		t.Errorf("%d events of %d: %v", events, writers*each, err)
	}
}

func TestAuditIsBounded(t *testing.T) {
	dir := t.TempDir()
	if err := SetAudit(dir, Audit{MaxSize: 2 << 10, MaxFiles: 3}); err != nil {
		t.Fatal(err)
	}
	if err := auditWriter(dir, "g", 100); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "audit.jsonl*"))
	if err != nil || len(files) != 3 {
		t.Errorf("%v, %v", files, err)
	}
	for _, f := range files {
		if s, err := os.Stat(f); err != nil || s.Size() > 2<<10 || s.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, s, err)
		}
	}
	all := auditLines(t, filepath.Join(dir, "audit.jsonl"))
	if len(all) == 0 || all[len(all)-1].N != 99 {
		t.Errorf("the last entry is %+v", all[len(all)-1])
	}
	if err := SetAudit(dir, Audit{}); err != nil {
		t.Fatal(err)
	}
	if a, err := ReadAudit(dir); err != nil || a.MaxFiles != DefaultAuditFiles || a.MaxSize != DefaultAuditSize {
		t.Errorf("%+v, %v", a, err)
	}
	if err := Purge(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		left, _ := os.ReadDir(dir)
		t.Errorf("left after purge: %v", left)
	}
}

// Faults are not in it: they would push everything else out.
func TestAuditHasNoFaults(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenEventLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []EventType{EventFault, EventGraft, EventLost, EventRefused, EventStop, EventUngraft} {
		if err := l.Write(Event{Type: e}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var got []EventType
	for _, e := range auditLines(t, filepath.Join(dir, "audit.jsonl")) {
		got = append(got, e.Type)
	}
	if fmt.Sprint(got) != "[graft refused stop ungraft]" {
		t.Errorf("%v", got)
	}
}
