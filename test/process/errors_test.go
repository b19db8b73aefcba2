package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestErrorsChangeNothing(t *testing.T) {
	r := newRig(t)
	r.write("f", "x")
	h := r.start()
	before := h.snapshot()
	rule := "io error=EIO op=read ttl=1m"
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	pid := fmt.Sprint(h.pid())
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"no such path", []string{"--pid", pid, "--path", "/no/such/path", rule}, "/no/such/path"},
		{"relative path", []string{"--pid", pid, "--path", "data", rule}, "absolute"},
		{"proc", []string{"--pid", pid, "--path", "/proc", rule}, "window into the kernel"},
		{"device", []string{"--pid", pid, "--path", "/dev/null", rule}, "neither a directory nor a regular file"},
		{"no such process", []string{"--pid", fmt.Sprint(dead.Process.Pid), "--path", r.data, rule}, "no such process"},
		{"init", []string{"--pid", "1", "--path", r.data, rule}, "init"},
		{"kernel thread", []string{"--pid", "2", "--path", r.data, rule}, "kernel thread"},
		{"own tree", []string{"--pid", fmt.Sprint(os.Getpid()), "--path", r.data, rule}, "part of its process tree"},
		{"no rule", []string{"--pid", pid, "--path", r.data}, "give a rule"},
		{"wrong errno", []string{"--pid", pid, "--path", r.data, "io error=EIOO op=read"}, "EIO"},
		{"wrong op", []string{"--pid", pid, "--path", r.data, "io error=EIO op=raed"}, "read"},
		{"rule elsewhere", []string{"--pid", pid, "--path", r.data, "io error=EIO op=read path=/elsewhere/**"}, "could never fire"},
		{"no such container", []string{"--containerd-address", r.state + "/none.sock", "nobody", "--path", r.data, rule}, "none.sock"},
		{"no such graft", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"inject"}, c.args...)
			if c.args == nil {
				args, c.want = []string{"recover", "g-12345678"}, "no such graft"
			}
			out, err := r.run(args...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("answer %q, error %v; want %q", out, err, c.want)
			}
			t.Log(err)
		})
	}
	same(t, before, h.snapshot())
}

// Without privileges and without FUSE: an error in words, and nothing changed.
func TestMissingPrivilegeAndFUSE(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "x")
	if err := os.Chmod(filepath.Dir(binaries.faultgraft), 0o755); err != nil {
		t.Fatal(err)
	}
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	args := []string{"inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=read"}
	cmd := r.command(args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "root") {
		t.Errorf("uid 65534: %v: %s", err, out)
	}
	t.Logf("%s", out)
	// A namespace whose /dev has no fuse.
	script := `mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"`
	cmd = r.command()
	cmd.Path, cmd.Args = "/usr/bin/unshare", append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", binaries.faultgraft}, args...)
	out, err = cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no FUSE") {
		t.Errorf("no /dev/fuse: %v: %s", err, out)
	}
	t.Logf("%s", out)
	same(t, before, h.snapshot())
}
