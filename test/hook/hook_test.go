package hook

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

const (
	key     = "wal.faultgraft.io"
	rule    = "io error=EIO op=read path=/data/** ttl=5m"
	idle    = "exec sleep 1000"
	content = "content"
)

func isEIO(out string) bool {
	return strings.Contains(out, "I/O error") || strings.Contains(out, "Input/output error")
}

func (r *runtime) wantContent(id string) {
	r.Helper()
	if out, ok := r.read(id); !ok || out != content {
		r.Errorf("container %s: cat: %q, worked: %v; want its content", id, out, ok)
	}
}

func (r *runtime) wantEIO(id string) {
	r.Helper()
	if out, ok := r.read(id); ok || !isEIO(out) {
		r.Errorf("container %s: cat: %q, worked: %v; want an I/O error", id, out, ok)
	}
}

// A container with the hook and an annotation gets the fault, in its own
// program and in what is executed in it; one without either gets none.
func TestRunWithHook(t *testing.T) {
	r := newRuntime(t)
	// The program's working directory is the volume itself.
	const loop = `while :; do cat f >/out/last 2>&1 && echo ok >>/out/log || echo failed >>/out/log; sleep 0.1; done`
	dir := r.bundle("hooked", true, loop, map[string]string{key: rule})
	r.bundle("unhooked", false, idle, map[string]string{key: rule})
	r.bundle("unannotated", true, idle, map[string]string{"org.example": "x"})
	for _, id := range []string{"hooked", "unhooked", "unannotated"} {
		r.must("run", "--detach", "--bundle", filepath.Join(r.dir, id), id)
	}
	r.wantEIO("hooked")
	r.wantContent("unhooked")
	r.wantContent("unannotated")

	g := r.grafts()
	if len(g) != 1 || g[0].Target.ID != "hooked" || g[0].Path != "/data" || g[0].State != keeper.StateActive || g[0].Origin != keeper.OriginAnnotation {
		t.Fatalf("grafts: %+v", g)
	}
	r.await("the container's own program fails", func() bool {
		log, _ := os.ReadFile(filepath.Join(dir, "rootfs/out/log")) // it comes
		last, _ := os.ReadFile(filepath.Join(dir, "rootfs/out/last"))
		return strings.HasSuffix(string(log), "failed\n") && isEIO(string(last))
	})
	// runc calls poststart hooks before the program's first instruction.
	if log, err := os.ReadFile(filepath.Join(dir, "rootfs/out/log")); err != nil || !strings.HasPrefix(string(log), "failed\n") {
		t.Errorf("the program's first read is not the layer's: %.40q, %v", log, err)
	}
	r.wantDetached()

	r.command("recover", g[0].ID)
	r.wantContent("hooked")
	r.await("the container's own program works again", func() bool {
		log, _ := os.ReadFile(filepath.Join(dir, "rootfs/out/log"))
		return strings.HasSuffix(string(log), "ok\n")
	})
}

func (r *runtime) await(what string, ok func() bool) {
	r.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("this did not come about: %s", what)
		}
	}
}

// wantDetached: keepers hold nothing of the runtime's pipes, for which the runtime would wait.
func (r *runtime) wantDetached() {
	r.Helper()
	pids := r.processes()
	if len(pids) == 0 {
		r.Error("no keeper runs")
	}
	for _, p := range pids {
		for _, fd := range []string{"0", "1", "2"} {
			to, err := os.Readlink(filepath.Join(p, "fd", fd))
			if err != nil {
				r.Error(err)
			}
			if to != "/dev/null" && !strings.HasPrefix(to, r.state) {
				r.Errorf("%s: descriptor %s is %s", p, fd, to)
			}
		}
	}
}

// create and start by hand: the layer is there before the program starts, as runc has it, and goes with the container.
func TestCreateAndStart(t *testing.T) {
	r := newRuntime(t)
	r.bundle("c", true, idle, map[string]string{key: rule})
	r.must("create", "--bundle", filepath.Join(r.dir, "c"), "c")
	if g := r.grafts(); len(g) != 1 || g[0].State != keeper.StateActive {
		t.Errorf("grafts of a container that was created: %+v", g)
	}
	r.must("start", "c")
	r.wantEIO("c")
	r.must("delete", "--force", "c")
	r.await("no graft is left of a container that was deleted", func() bool { return len(r.grafts()) == 0 })
	r.await("its keeper ends", func() bool { return len(r.processes()) == 0 })
	// Deleted: the test's own clean-up finds none, and --force makes that no error.
}

// What an annotation says never keeps a container from running.
func TestRefusedAnnotations(t *testing.T) {
	r := newRuntime(t)
	for _, tt := range []struct {
		id          string
		annotations map[string]string
		refusals    []string
	}{
		{"wrong", map[string]string{key: "io error=EIOO op=read path=/data/**"}, []string{`annotation wal.faultgraft.io: column 10: unknown errno "EIOO"`}},
		{"nowhere", map[string]string{key: "io error=EIO op=read path=/nowhere/**"}, []string{"/nowhere: not grafted: "}},
		{"disabled", map[string]string{key: rule, "enable.faultgraft.io": "false"}, nil},
	} {
		r.bundle(tt.id, true, idle, tt.annotations)
		r.must("run", "--detach", "--bundle", filepath.Join(r.dir, tt.id), tt.id)
		r.wantContent(tt.id)
		var got []string
		for _, e := range r.events(keeper.EventRefused) {
			if e.Target == tt.id {
				got = append(got, e.Message)
			}
		}
		if len(got) < len(tt.refusals) || len(tt.refusals) == 0 && len(got) > 0 {
			t.Errorf("%s: refusals %q, want %q", tt.id, got, tt.refusals)
			continue
		}
		for _, want := range tt.refusals {
			if !strings.Contains(strings.Join(got, "\n"), want) {
				t.Errorf("%s: refusals %q, want %q", tt.id, got, want)
			}
		}
	}
	if g := r.grafts(); len(g) != 0 {
		t.Errorf("grafts: %+v", g)
	}
}

// A phase that cannot be used is an error of whoever wrote config.json, and is shown with the first container.
func TestRefusedPhase(t *testing.T) {
	r := newRuntime(t)
	dir := r.bundle("early", true, idle, map[string]string{key: rule})
	name := filepath.Join(dir, "config.json")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(`"poststart":[`, `"createRuntime":[`, `"poststart"]`, `"createRuntime"]`).Replace(string(b))
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := r.oci("run", "--detach", "--bundle", dir, "early")
	if err == nil || !strings.Contains(out, "a createRuntime hook cannot graft in this version: it runs before pivot_root") {
		t.Errorf("error %v, output %q", err, out)
	}
}
