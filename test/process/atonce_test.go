package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// Many grafts at once, over many paths of many targets, asked for by as many callers: all are made, each with its own rule, and all
// come off at once again. FAULTGRAFT_TEST_LONG=1 makes 500 of them.
func TestManyGraftsAtOnce(t *testing.T) {
	targets, paths := 4, 10
	if len(some().or("all")) > 0 {
		targets, paths = 25, 20
	}
	r := newRig(t)
	var all []*holder
	var before []map[string]string
	for p := range paths {
		if err := os.Mkdir(filepath.Join(r.data, fmt.Sprint(p)), 0o755); err != nil {
			t.Fatal(err)
		}
		r.write(fmt.Sprintf("%d/f", p), "0123456789")
	}
	for range targets {
		h := r.start()
		for p := range paths {
			h.ok("open f%d %s/%d/f rdwr", p, r.data, p)
		}
		all, before = append(all, h), append(before, h.snapshot())
	}
	rule, err := policy.ParseRule("rule-1", "io error=EIO op=fsync path=/** ttl=30m", policy.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	client := &keeper.Client{StateDir: r.state, Executable: binaries.faultgraft}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for _, h := range all {
		for p := range paths {
			wg.Go(func() {
				_, err := client.Inject(ctx, keeper.Target{PID: h.pid()}, keeper.Request{
					Path: filepath.Join(r.data, fmt.Sprint(p)), Rules: []policy.Rule{rule}, Origin: keeper.OriginUser,
				})
				if err != nil {
					t.Errorf("graft %d of process %d: %v", p, h.pid(), err)
				}
			})
		}
	}
	wg.Wait()
	if n := len(r.list()); n != targets*paths {
		t.Errorf("%d grafts, want %d", n, targets*paths)
	}
	for _, h := range all {
		for p := range paths {
			h.is("EIO", "fsync f%d", p)
			h.is("ok 0123456789", "pread f%d 0 100", p)
		}
	}
	if out, err := r.run("recover", "--all"); err != nil {
		t.Errorf("recover --all: %v: %s", err, out)
	}
	for i, h := range all {
		for p := range paths {
			h.is("ok", "fsync f%d", p)
		}
		same(t, before[i], h.snapshot())
	}
}

// Many grafts at once that are refused: one keeper says so to all callers. It had ended after each refusal, so that each caller started the next one, and
// the last ones gave up after 10 s.
func TestManyRefusalsAtOnce(t *testing.T) {
	r := newRig(t)
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "0123456789"))
	rule, err := policy.ParseRule("rule-1", "io error=EIO op=fsync path=/** ttl=30m", policy.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	client := &keeper.Client{StateDir: r.state, Executable: binaries.faultgraft}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			_, err := client.Inject(ctx, keeper.Target{PID: h.pid()}, keeper.Request{
				Path: filepath.Join(r.data, fmt.Sprint("none", i)), Rules: []policy.Rule{rule}, Origin: keeper.OriginUser,
			})
			if err == nil || !strings.Contains(err.Error(), "no such file or directory") {
				t.Errorf("graft %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=10m")
	h.is("EIO", "fsync f")
	r.recover(g)
	h.is("ok", "fsync f")
}

// P8: `stop --all` while many grafts wait for their turn: none is made after it, what was made comes off, and the targets are as they were.
func TestStopWhileManyGraftsWait(t *testing.T) {
	r := newRig(t)
	rule, err := policy.ParseRule("rule-1", "io error=EIO op=fsync path=/** ttl=30m", policy.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	client := &keeper.Client{StateDir: r.state, Executable: binaries.faultgraft}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const targets, paths = 5, 12
	var all []*holder
	var before []map[string]string
	for p := range paths {
		if err := os.Mkdir(filepath.Join(r.data, fmt.Sprint(p)), 0o755); err != nil {
			t.Fatal(err)
		}
		r.write(fmt.Sprintf("%d/f", p), "0123456789")
	}
	for range targets {
		h := r.start()
		for p := range paths {
			h.ok("open f%d %s/%d/f rdwr", p, r.data, p)
		}
		all, before = append(all, h), append(before, h.snapshot())
	}
	var wg sync.WaitGroup
	for _, h := range all {
		for p := range paths {
			wg.Go(func() {
				_, err := client.Inject(ctx, keeper.Target{PID: h.pid()}, keeper.Request{
					Path: filepath.Join(r.data, fmt.Sprint(p)), Rules: []policy.Rule{rule}, Origin: keeper.OriginUser,
				})
				if err != nil && !errors.Is(err, keeper.ErrStopped) && !strings.Contains(err.Error(), "stopped") {
					t.Errorf("graft %d of process %d: %v", p, h.pid(), err)
				}
			})
		}
	}
	for end := time.Now().Add(20 * time.Second); len(r.list()) < 3; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no graft is made")
		}
	}
	if out, err := r.run("stop", "--all", "--reason", "a test"); err != nil {
		t.Errorf("stop: %v: %s%s", err, out, r.logs())
	}
	for _, h := range all {
		for p := range paths {
			h.is("ok", "fsync f%d", p)
		}
	}
	wg.Wait()
	r.awaitOff(10*time.Second, "a graft is there after the stop")
	for i, h := range all {
		same(t, before[i], h.snapshot())
	}
	if out, err := r.run("release"); err != nil {
		t.Errorf("release: %v: %s", err, out)
	}
}
