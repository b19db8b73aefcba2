package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/test/programs"
)

// buildTarget builds test/target, the C program that holds objects of every
// kind in blocked threads and checks by itself that nothing about them changes.
func buildTarget(t *testing.T) string { return programs.C(t, "target") }

// program is a running test/target.
type program struct {
	t *testing.T
	h *holder
}

func (r *rig) program(t *testing.T, bin string, args ...string) *program {
	t.Helper()
	h := r.launch(append([]string{"unshare", "--mount", "--propagation", "private", bin}, args...)...)
	p := &program{t: t, h: h}
	if got := h.line("its start"); got != "ready" {
		t.Fatalf("the target says %q", got)
	}
	return p
}

func (p *program) check() {
	p.t.Helper()
	if got := p.h.do("check"); !strings.HasPrefix(got, "ok") {
		p.t.Errorf("the target says %q", got)
	}
}

// manyFiles are 300, but fewer on a machine that is emulated: to close so many may take its server longer than a batch has (batchTimeout in tracer).
func manyFiles() string {
	if stopDeadline() != nil {
		return "50"
	}
	return "300"
}

// A C program with every kind of object and every kind of blocking call goes
// through real grafts: G4 to G12, G16, G18, G25.
func TestEveryKindOfObject(t *testing.T) {
	bin := buildTarget(t)
	for _, args := range [][]string{{"hold"}, {"files", manyFiles(), "32"}, {"seccomp"}} {
		t.Run(args[0], func(t *testing.T) {
			r := newRig(t)
			all := append([]string{args[0], r.data}, args[1:]...)
			p := r.program(t, bin, all...)
			if args[0] == "seccomp" {
				if got := p.h.do("go"); got != "ready" { // its filter is on from here
					t.Fatalf("the target says %q", got)
				}
			}
			p.check()
			for i := range 5 {
				g := r.inject(p.h, r.data, "io error=EIO op=fsync p=0 ttl=2m")
				if len(g.Report.Swapped) == 0 {
					t.Fatalf("nothing was moved: %+v", g.Report)
				}
				for _, s := range g.Report.Skipped {
					if i == 0 {
						t.Logf("not moved: %s: %s", &s.Object, s.Reason)
					}
				}
				p.check()
				u := r.recover(g)
				for _, s := range u.Report.Skipped {
					t.Errorf("left on the layer: %s: %s", &s.Object, s.Reason)
				}
				p.check()
			}
			if left := onLayer(t, p.h.pid(), r.data); left != "" {
				t.Errorf("on a layer still: %s", left)
			}
		})
	}
}

// G17: signals that a child queues while grafts come and go are delivered once each; the target counts them.
func TestSignalsDuringGrafts(t *testing.T) {
	r := newRig(t)
	p := r.program(t, buildTarget(t), "signals", r.data, "200000")
	if _, err := fmt.Fprintln(p.h.in, "go"); err != nil {
		t.Fatal(err)
	}
	answer := make(chan string, 1)
	go func() { s, _ := p.h.out.ReadString('\n'); answer <- strings.TrimSpace(s) }()
	for n := 0; ; n++ {
		select {
		case got := <-answer:
			if got != "ok" || n == 0 {
				t.Errorf("after %d grafts the target says %q", n, got)
			}
			return
		default:
		}
		// It may end between the look and the graft.
		out, err := r.run("inject", "--pid", fmt.Sprint(p.h.pid()), "--path", r.data, "io error=EIO op=fsync p=0 ttl=2m")
		if err == nil {
			_, err = r.run("recover", out)
		}
		if err != nil && !strings.Contains(err.Error(), "ended") && !strings.Contains(err.Error(), "no such") {
			t.Fatal(err)
		}
	}
}

// G19 in part: a storm of forks and threads ends with nothing on the wrong side.
func TestForkStorm(t *testing.T) {
	r := newRig(t)
	p := r.program(t, buildTarget(t), "storm", r.data)
	for range 5 {
		g := r.inject(p.h, r.data, "io error=EIO op=fsync p=0 ttl=2m")
		time.Sleep(50 * time.Millisecond)
		r.recover(g)
		p.check()
	}
}

// onLayer names a descriptor of the process whose mount is not in its mountinfo.
func onLayer(t *testing.T, pid int, below string) string {
	t.Helper()
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, l := range strings.Split(string(mounts), "\n") {
		id, _, _ := strings.Cut(l, " ")
		known[id] = true
	}
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range infos {
		link, err := os.Readlink(strings.Replace(f, "fdinfo", "fd", 1))
		if err != nil || !strings.HasPrefix(link, below) {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), "mnt_id:\t")
		id, _, _ := strings.Cut(rest, "\n")
		if !known[id] {
			return link + " (mount " + id + ")"
		}
	}
	return ""
}
