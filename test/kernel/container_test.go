package kernel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// patience is for what takes milliseconds on a real machine.
const patience = 5 * time.Minute

// container is one of runc, with busybox for a root and a cgroup of its own.
type container struct {
	t      testing.TB
	name   string
	id     string // containerd's, if that runs it
	cgroup string // in the v2 hierarchy, /tests/name
	bundle string
}

// start runs sh -c script in a new container in the cgroup /tests/name.
func start(t testing.TB, name, script string) *container {
	t.Helper()
	return startAs(t, name, script, func(*specs.Spec) {})
}

// startAs is start, with a specification that is changed before.
func startAs(t testing.TB, name, script string, change func(*specs.Spec)) *container {
	t.Helper()
	c := &container{t: t, name: name, cgroup: "/tests/" + name, bundle: t.TempDir()}
	root := filepath.Join(c.bundle, "rootfs")
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "mnt", "out"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	spec := c.spec(script)
	change(spec)
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	c.again()
	t.Cleanup(c.remove)
	return c
}

// spec is privileged, so that only faults fail: all capabilities, no seccomp.
func (c *container) spec(script string) *specs.Spec {
	caps := []string{"CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_KILL", "CAP_MKNOD", "CAP_SYS_CHROOT"}
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/bin", Type: "bind", Source: "/bin", Options: []string{"rbind", "ro"}},
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs"},
			{Destination: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup2"},
		},
		Linux: &specs.Linux{
			CgroupsPath: c.cgroup,
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.CgroupNamespace},
			},
		},
	}
}

// again starts a container that is not there, or no more, from its bundle.
func (c *container) again() {
	c.t.Helper()
	out, err := os.Create(filepath.Join(c.bundle, "output"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "runc", "run", "-d", "--no-new-keyring", "-b", c.bundle, c.name)
	// a detached container keeps these
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		c.t.Fatalf("runc run %s: %v: %s", c.name, err, c.output())
	}
}

func (c *container) remove() {
	if out, err := command(patience, "runc", "delete", "-f", c.name); err != nil && !strings.Contains(out, "does not exist") {
		c.t.Errorf("runc delete %s: %v: %s", c.name, err, out)
	}
}

// output is all that the container has printed since it was started.
func (c *container) output() string {
	b, err := os.ReadFile(filepath.Join(c.bundle, "output"))
	if err != nil {
		c.t.Error(err)
	}
	return string(b)
}

// pid is the container's first process.
func (c *container) pid() int {
	c.t.Helper()
	out, err := command(patience, "runc", "state", c.name)
	if err != nil {
		c.t.Fatalf("runc state %s: %v: %s", c.name, err, out)
	}
	var s specs.State
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		c.t.Fatalf("runc state %s: %v in %q", c.name, err, out)
	}
	return s.Pid
}

// exec runs a shell script in the container; it returns what it printed and whether it ended with 0.
func (c *container) exec(script string) (string, bool) {
	c.t.Helper()
	return ended(c.t, "runc", "exec", c.name, "/bin/sh", "-c", script)
}

// host runs a shell script outside of all containers.
func host(t testing.TB, script string) (string, bool) {
	t.Helper()
	return ended(t, "/bin/sh", "-c", script)
}

func ended(t testing.TB, args ...string) (string, bool) {
	t.Helper()
	out, err := command(patience, args...)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || !exit.Exited()) {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out, err == nil
}

// command runs a program to its end and returns what it printed, to both outputs.
func command(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("no end after %v: %w", limit, err)
	}
	return out.String(), err
}

// await waits until the condition holds.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("after %v still not: %s", patience, what)
}

// count says how many lines have the text in them.
func count(lines, text string) int {
	n := 0
	for line := range strings.Lines(lines) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func itoa(n int) string { return strconv.Itoa(n) }

// background starts a program outside of all containers, which the test's end ends.
func (c *container) background(args ...string) {
	c.t.Helper()
	out, err := os.Create(filepath.Join(c.bundle, "output"))
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = out.Close()
	})
}
