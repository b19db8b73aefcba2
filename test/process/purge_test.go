package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// lateFollower is a target whose keeper was killed, and who follows that has been stopped before it listens.
type lateFollower struct {
	*faulted
	follows int // the process
	goesOn  func()
}

// newLateFollower kills those with the roles.
func newLateFollower(t *testing.T, roles ...string) *lateFollower {
	t.Helper()
	r := newRig(t)
	const point = "keeper start.namespace"
	mark := filepath.Join(r.reached, failpoint.Mark("stop", point))
	if err := os.WriteFile(mark, nil, 0o600); err != nil { // not the first keeper
		t.Fatal(err)
	}
	r.env = []string{failpoint.At + "=stop:" + point}
	l := &lateFollower{faulted: r.startFaulted("5m")}
	r.env = nil
	r.oneServer()
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	var killed []int
	for _, role := range roles {
		killed = append(killed, r.processes(role)...)
	}
	for _, pid := range killed {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	l.follows, l.goesOn = r.stoppedAt(point)
	return l
}

// Who has a killed keeper's layers taken off may not listen yet: `recover --all` waits for that, or says that it cannot be asked. After
// `recover --all --purge` nothing is left, and nothing comes up any more.
func TestRecoverAllWhileNobodyListens(t *testing.T) {
	t.Parallel()
	for name, roles := range map[string][]string{"keeper": {"keeper"}, "keeper and server": {"server", "keeper"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLateFollower(t, roles...)
			out, err := l.r.run("recover", "--all", "--purge")
			if want := fmt.Sprintf("process %d (keeper) is about to take layers off", l.follows); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("recover while nobody listens: %s, %v; want %q", out, err, want)
			}
			l.goesOn()
			out, err = l.r.run("recover", "--all", "--purge")
			if err != nil {
				t.Errorf("recover: %s, %v%s", out, err, l.r.logs())
			}
			l.r.gone()
			l.asBefore()
			time.Sleep(time.Second) // for what would come up now
			l.r.gone()
		})
	}
}

// gone: there is nothing of faultgraft's at this moment.
func (r *rig) gone() {
	r.t.Helper()
	if left := r.leftovers(); len(left) > 0 {
		r.t.Errorf("left behind: %q", left)
	}
	if left, err := os.ReadDir(r.state); !errors.Is(err, fs.ErrNotExist) {
		r.t.Errorf("state is left: %v, %v", left, err)
	}
}

// Somebody grafts the same target before the follower of its killed keeper and server listens: both are there for what is theirs.
func TestGraftBeforeTheFollowerListens(t *testing.T) {
	t.Parallel()
	l := newLateFollower(t, "server", "keeper")
	place := t.TempDir()
	q := filepath.Join(place, "q")
	if err := os.WriteFile(q, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l.ok("open q %s rdwr", q)
	g := l.r.inject(l.holder, place, "io error=ENOSPC op=fsync ttl=5m")
	l.is("ENOSPC", "fsync q")
	l.goesOn()
	l.is("ok", "fsync f") // it waits, at most
	for end := time.Now().Add(time.Minute); strings.Count(l.mountinfo(), "fuse.faultgraft") > 1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the layer of the dead stays: %s", l.r.logs())
		}
	}
	l.is("ENOSPC", "fsync q")
	if all := l.r.list(); len(all) < 1 || all[0].ID != g.ID && all[len(all)-1].ID != g.ID || all[len(all)-1].State == keeper.StateFailed {
		t.Errorf("the graft that was made meanwhile: %+v", all)
	}
	l.r.recover(g)
	l.ok("close q")
	l.asBefore()
}

// Without a keeper, a server goes on with a layer that was taken off and is still used: recover has nothing to do there, and says so; nothing is
// purged that it would make anew.
func TestPurgeWhileAServerGoesOnAlone(t *testing.T) {
	t.Parallel()
	bin := buildTarget(t)
	r := newRig(t)
	h := r.start()
	mounts := h.mountinfo()
	r.inject(h, r.data, "io error=EIO op=fsync p=0 ttl=2m")
	q := r.launch("nsenter", "--mount", "--target", fmt.Sprint(h.pid()), bin, "held", r.data, "file", "flight")
	if got := q.line("its start"); got != "ready" {
		t.Fatalf("the target says %q", got)
	}
	server := r.oneServer()
	r.signal("keeper", syscall.SIGKILL)
	r.awaitUnmounted(h, time.Minute)
	for end := time.Now().Add(time.Minute); len(r.processes("keeper")) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the keeper that took the layer off does not end: %q%s", r.leftovers(), r.logs())
		}
	}
	words := fmt.Sprintf("process %d (server)", server)
	if out, err := r.command("recover", "--all").CombinedOutput(); err != nil || !strings.Contains(string(out), "lingers: "+words) {
		t.Errorf("recover --all: %s, %v; want %q", out, err, words)
	}
	if out, err := r.run("events"); err != nil || !strings.Contains(out, "served without rules as long as it is used") {
		t.Errorf("events: %s, %v", out, err)
	}
	out, err := r.run("recover", "--all", "--purge")
	if err == nil || !strings.Contains(err.Error(), words+" still runs: it serves on") {
		t.Errorf("recover --all --purge: %s, %v; want %q", out, err, words)
	}
	if got := q.do("take"); got != "ok" {
		t.Errorf("what is left on the layer does not work: the target says %q", got)
	}
	q.do("quit")
	if out, err := r.run("recover", "--all", "--purge"); err != nil {
		t.Errorf("recover --all --purge: %s, %v%s", out, err, r.logs())
	}
	r.gone()
	if now := h.mountinfo(); now != mounts {
		t.Errorf("mounts:\n%s\nbefore:\n%s", now, mounts)
	}
}
