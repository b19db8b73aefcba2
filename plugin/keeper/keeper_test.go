package keeper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "audit-writer" {
		n, err := strconv.Atoi(os.Args[4])
		if err == nil {
			err = auditWriter(os.Args[2], os.Args[3], n)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// A tree scope knows its process, its descendants, and those that were seen in it before they lost their parents.
func TestTreeScope(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 60 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Fscan(out, &child); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if p, err := os.FindProcess(child); err == nil {
			_ = p.Kill()
		}
	}()
	s := newTreeScope(cmd.Process.Pid)
	if !s.contains(uint32(cmd.Process.Pid)) || !s.contains(uint32(child)) {
		t.Error("the process or its child is not in the tree")
	}
	if s.contains(uint32(os.Getpid())) || s.contains(1) || s.contains(0) || s.contains(1<<22+1) {
		t.Error("others are in the tree")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if !s.contains(uint32(child)) {
		t.Error("an orphan that was seen in the tree left it")
	}
}

// Several processes append to the log; no line is torn, and a follower sees all of them, over a rotation too.
func TestEventLog(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	got := make(chan Event, 1000)
	var follower sync.WaitGroup
	follower.Add(1)
	go func() {
		defer follower.Done()
		if err := ReadEvents(ctx, dir, true, func(e Event) error { got <- e; return nil }); err != nil {
			t.Error(err)
		}
	}()
	const writers, each = 4, 100
	var wg sync.WaitGroup
	for w := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			l, err := OpenEventLog(dir)
			if err != nil {
				t.Error(err)
				return
			}
			for i := range each {
				if err := l.Write(Event{Type: EventFault, Rule: fmt.Sprint(w), N: uint64(i), Message: strings.Repeat("m", 500)}); err != nil {
					t.Error(err)
				}
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	next := map[string]uint64{}
	for range writers * each {
		select {
		case e := <-got:
			if e.N != next[e.Rule] {
				t.Fatalf("writer %s: event %d after %d", e.Rule, e.N, next[e.Rule])
			}
			next[e.Rule]++
		case <-ctx.Done():
			t.Fatalf("the follower saw only %v", next)
		}
	}
	if err := os.Rename(stateDir(dir).events(), stateDir(dir).events()+".1"); err != nil {
		t.Fatal(err)
	}
	l, err := OpenEventLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := l.Write(Event{Type: EventGraft, Graft: "g-new"}); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-got:
		if e.Graft != "g-new" {
			t.Errorf("%+v", e)
		}
	case <-ctx.Done():
		t.Error("the follower did not follow the rotation")
	}
	cancel()
	follower.Wait()
}

func TestReadEventsNamesABadLine(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "events.jsonl"), []byte("{\"type\":\"graft\"}\nnonsense\n{\"type\":\"ungraft\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got []Event
	err := ReadEvents(context.Background(), dir, false, func(e Event) error { got = append(got, e); return nil })
	if err != nil || len(got) != 3 || got[1].Type != EventLost || !strings.Contains(got[1].Message, "nonsense") || got[2].Type != EventUngraft {
		t.Errorf("%+v, %v", got, err)
	}
}

// Purge takes what faultgraft wrote, and nothing else.
func TestPurge(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.MkdirAll(filepath.Join(dir, "keepers", "mnt-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"events.jsonl", "foreign"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Purge(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "foreign" {
		t.Errorf("%v, %v", left, err)
	}
	if err := os.Remove(filepath.Join(dir, "foreign")); err != nil {
		t.Fatal(err)
	}
	if err := Purge(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
	if err := Purge(dir); err != nil {
		t.Errorf("purged twice: %v", err)
	}
}
