package process

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// P4, P15: with all that stood by a target killed at once, nobody serves its layer.
// `recover --orphans` takes it off without any of them, and gives back what is open by its path.
func TestOrphanedLayer(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	h.ok("lseek f 4")
	h.ok("chdir %s", r.data)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=10m")
	other := r.start()
	q := r.write("q", "beside")
	other.ok("open q %s rdonly", q)
	held := r.inject(other, r.data, "io error=EIO op=fsync ttl=10m")
	r.killAll(g)
	for end := time.Now().Add(30 * time.Second); h.do("stat %s", p) != "ENOTCONN"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("stat: %s", h.do("stat %s", p))
		}
	}
	out, err := r.run("recover", "--orphans", "-o", "json")
	if err != nil {
		t.Fatalf("recover --orphans: %v", err)
	}
	var off []keeper.Graft
	if err := json.Unmarshal([]byte(out), &off); err != nil || len(off) != 1 || off[0].ID != g.ID || off[0].Path != r.data {
		t.Errorf("recovered: %s, %v", out, err)
	}
	same(t, before, h.snapshot())
	h.is("ok", "fsync f")
	h.is("ok 456789", "read f 100")
	h.ok("lseek f 4")
	h.is("ok "+r.data, "getcwd")
	if l := r.list(); len(l) != 1 || l[0].ID != held.ID || l[0].State != keeper.StateActive {
		t.Errorf("what somebody holds: %+v", l)
	}
	other.is("EIO", "fsync q")
	if left, err := os.ReadDir(r.state + "/keepers"); err != nil || len(left) != 2 { // the lock, and the one that lives
		t.Errorf("folders of keepers: %v, %v", left, err)
	}
}

// killAll kills the keeper, the server and whoever else holds a graft, at once.
func (r *rig) killAll(g keeper.Graft) {
	r.t.Helper()
	var pids []int
	for _, l := range leftovers(r.t) {
		if pid, ok := processIn(l); ok && r.holds(pid, g) {
			pids = append(pids, pid)
		}
	}
	if len(pids) < 2 {
		r.t.Fatalf("processes of graft %s: %v in %q", g.ID, pids, leftovers(r.t))
	}
	for _, pid := range pids { // stopped first, so that none does anything for another's death
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			r.t.Fatal(err)
		}
	}
}

// holds: a keeper names its target, and the others descend from it.
func (r *rig) holds(pid int, g keeper.Graft) bool {
	for range 5 {
		args, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline") // it may have ended
		if strings.Contains(string(args), `"pid":`+strconv.Itoa(g.Target.PID)+",") {
			return true
		}
		stat, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		_, after, found := strings.Cut(string(stat), "PPid:\t")
		parent, _, _ := strings.Cut(after, "\n")
		if pid, _ = strconv.Atoi(parent); !found || pid <= 1 {
			return false
		}
	}
	return false
}
