// Package hook tests faultgraft as an OCI runtime hook: the lab's real runc, by
// hand, without containerd or NRI.
package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// lacks skips a test, or fails it where CI=true forbids that.
func lacks(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("cannot run, and CI=true forbids to skip it: "+format, args...)
	}
	t.Skipf(format, args...)
}

// labRunc finds the runc that contrib/lab/lab.sh builds.
func labRunc(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("FAULTGRAFT_LAB")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			lacks(t, "no place for the lab: %v; set FAULTGRAFT_LAB to a folder", err)
		}
		dir = filepath.Join(cache, "faultgraft", "lab")
	}
	runc := filepath.Join(dir, "bin", "runc")
	if _, err := os.Stat(runc); err != nil {
		lacks(t, "the lab's runc is not built (%v): run contrib/lab/lab.sh build", err)
	}
	return runc
}

// runtime is runc with a root folder of its own, and a faultgraft with a state directory of its own.
type runtime struct {
	*testing.T
	ctx                     context.Context
	runc, faultgraft        string
	root, state, dir, group string
}

func newRuntime(t *testing.T) *runtime {
	t.Helper()
	if os.Geteuid() != 0 {
		lacks(t, "needs root: runc makes namespaces, mounts and cgroups")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		lacks(t, "needs FUSE: %v (modprobe fuse)", err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	r := &runtime{
		T: t, ctx: ctx, runc: labRunc(t), dir: dir, root: filepath.Join(dir, "runc"), state: filepath.Join(dir, "state"),
		faultgraft: filepath.Join(dir, "faultgraft"), group: fmt.Sprintf("faultgraft-hook-%d", os.Getpid()),
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", r.faultgraft, "github.com/faultgraft/faultgraft/cmd/faultgraft")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build faultgraft: %v\n%s", err, out)
	}
	t.Cleanup(r.clean)
	return r
}

// clean checks that nothing of the test is left but its folder.
func (r *runtime) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, r.faultgraft, "--state-dir", r.state, "recover", "--all", "--purge").CombinedOutput(); err != nil {
		r.Errorf("recover --all --purge: %v: %s", err, out)
	}
	if _, err := os.Stat(r.state); !errors.Is(err, os.ErrNotExist) {
		r.Errorf("the state directory is left: %v", err)
	}
	var groups []string
	var err error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, gerr := filepath.Glob(pattern + r.group)
		groups, err = append(groups, found...), errors.Join(err, gerr)
	}
	for _, g := range groups {
		err = errors.Join(err, os.Remove(g)) // rmdir refuses one that is in use
	}
	if err != nil {
		r.Errorf("remove cgroups: %v", err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := r.processes()
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			r.Errorf("processes of faultgraft are left: %v", left)
			return
		}
	}
}

// processes lists those that run this test's faultgraft.
func (r *runtime) processes() []string {
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		r.Fatal(err)
	}
	var pids []string
	for _, e := range exes {
		// one that has ended has no exe
		if to, err := os.Readlink(e); err == nil && strings.TrimSuffix(to, " (deleted)") == r.faultgraft {
			pids = append(pids, filepath.Dir(e))
		}
	}
	return pids
}

// oci runs runc in a mount namespace of its own, so that no mount of a container's setup reaches the machine.
func (r *runtime) oci(args ...string) (string, error) {
	r.Helper()
	all := append([]string{"-m", "--propagation", "private", r.runc, "--root", r.root}, args...)
	cmd := exec.CommandContext(r.ctx, "unshare", all...)
	// A container keeps what runc has as standard output: a pipe would not end.
	out, err := os.CreateTemp(r.dir, "out")
	if err != nil {
		r.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	if cerr := out.Close(); cerr != nil {
		r.Fatal(cerr)
	}
	said, rerr := os.ReadFile(out.Name())
	if rerr != nil {
		r.Fatal(rerr)
	}
	return string(said), err
}

func (r *runtime) must(args ...string) string {
	r.Helper()
	out, err := r.oci(args...)
	if err != nil {
		r.Fatalf("runc %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// command runs this test's faultgraft.
func (r *runtime) command(args ...string) []byte {
	r.Helper()
	var msg bytes.Buffer
	cmd := exec.CommandContext(r.ctx, r.faultgraft, append([]string{"--state-dir", r.state}, args...)...)
	cmd.Stderr = &msg
	out, err := cmd.Output()
	if err != nil {
		r.Fatalf("faultgraft %s: %v: %s", strings.Join(args, " "), err, msg.String())
	}
	return out
}

func (r *runtime) grafts() []keeper.Graft {
	r.Helper()
	var g []keeper.Graft
	if err := json.Unmarshal(r.command("ps", "-o", "json"), &g); err != nil {
		r.Fatal(err)
	}
	return g
}

func (r *runtime) events(kind keeper.EventType) []keeper.Event {
	r.Helper()
	var all []keeper.Event
	if err := keeper.ReadEvents(r.ctx, r.state, false, func(e keeper.Event) error {
		if e.Type == kind {
			all = append(all, e)
		}
		return nil
	}); err != nil {
		r.Fatal(err)
	}
	return all
}

// bundle makes one with busybox, a volume at /data that holds the file f, and
// the hook if hooked; the container is deleted after the test.
func (r *runtime) bundle(id string, hooked bool, script string, annotations map[string]string) string {
	r.Helper()
	dir := filepath.Join(r.dir, id)
	for _, d := range []string{"bin", "proc", "dev", "data", "out"} {
		if err := os.MkdirAll(filepath.Join(dir, "rootfs", d), 0o755); err != nil {
			r.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		lacks(r.T, "no busybox (%v): install busybox-static", err)
	}
	volume := filepath.Join(dir, "volume")
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "rootfs/bin/busybox"), busybox, 0o755),
		os.Mkdir(volume, 0o755), os.WriteFile(filepath.Join(volume, "f"), []byte("content"), 0o644),
	)
	for _, applet := range []string{"sh", "cat", "sleep", "echo", "touch"} {
		err = errors.Join(err, os.Symlink("busybox", filepath.Join(dir, "rootfs/bin", applet)))
	}
	if err != nil {
		r.Fatal(err)
	}
	if _, err := r.oci("spec", "--bundle", dir); err != nil {
		r.Fatal(err)
	}
	name := filepath.Join(dir, "config.json")
	b, err := os.ReadFile(name)
	if err != nil {
		r.Fatal(err)
	}
	var c specs.Spec
	if err := json.Unmarshal(b, &c); err != nil {
		r.Fatal(err)
	}
	c.Process.Terminal = false
	c.Process.Args = []string{"/bin/sh", "-c", script}
	c.Process.Cwd = "/data" // held open across the graft
	c.Root.Readonly = false
	c.Mounts = append(c.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: volume, Options: []string{"rbind", "rw"}})
	c.Annotations = annotations
	c.Linux.CgroupsPath = "/" + r.group + "/" + id
	if hooked {
		c.Hooks = &specs.Hooks{Poststart: []specs.Hook{{
			Path: r.faultgraft, Args: []string{"faultgraft", "--state-dir", r.state, "hook", "poststart"},
		}}}
	}
	if b, err = json.Marshal(c); err == nil {
		err = os.WriteFile(name, b, 0o644)
	}
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		var cancel context.CancelFunc
		r.ctx, cancel = context.WithTimeout(context.Background(), 30*time.Second) // the test's own may be over
		defer cancel()
		if out, err := r.oci("delete", "--force", id); err != nil {
			r.Errorf("runc delete: %v: %s", err, out)
		}
	})
	return dir
}

// read is `cat /data/f` in a container: what came, and whether it worked.
func (r *runtime) read(id string) (string, bool) {
	r.Helper()
	out, err := r.oci("exec", id, "/bin/cat", "/data/f")
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.Fatal(err)
	}
	return out, err == nil
}
