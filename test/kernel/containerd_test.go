package kernel

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

const image = "lab.local/busybox:1"

// runtime is a containerd of the test's own, with nerdctl.
type runtime struct{ t testing.TB }

// containerd starts one with the busybox image and ends it with the test.
func containerd(t testing.TB) *runtime {
	t.Helper()
	r := &runtime{t: t}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "containerd.toml"), `version = 3
root = '`+dir+`/root'
disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.internal.v1.opt']
`)
	write(t, "/etc/nerdctl/nerdctl.toml", `namespace = 'default'
snapshotter = 'overlayfs'
data_root = '`+dir+`/nerdctl'
cgroup_manager = 'cgroupfs'
`)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("containerd", "-c", filepath.Join(dir, "containerd.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("containerd's log ends with:\n%s", text[max(0, len(text)-3000):])
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // the signal is its end
		_ = log.Close()
	})
	await(t, "containerd answers", func() bool {
		_, err := command(patience, "nerdctl", "ps")
		return err == nil
	})
	r.nerdctl("load", "-i", "/opt/lab/busybox.tar")
	return r
}

func (r *runtime) nerdctl(args ...string) string {
	r.t.Helper()
	out, err := command(2*patience, append([]string{"nerdctl"}, args...)...)
	if err != nil {
		r.t.Fatalf("nerdctl %s: %v: %s", args[0], err, out)
	}
	return out
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
