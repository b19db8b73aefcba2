package plugin

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// checked gives the findings by their names.
func checked(t *testing.T, o NodeCheckOptions) map[string]graft.Check {
	t.Helper()
	all := map[string]graft.Check{}
	for _, c := range CheckNode(t.Context(), o) {
		if all[c.Name].Name != "" {
			t.Errorf("two findings are called %q", c.Name)
		}
		if c.Detail == "" || c.Required {
			t.Errorf("%+v: says nothing, or is required", c)
		}
		if !c.OK && c.Fix == "" {
			t.Errorf("%+v: no fix", c)
		}
		all[c.Name] = c
	}
	return all
}

func TestCheckNodeWithoutAnybody(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	o := NodeCheckOptions{StateDir: state, ContainerdAddress: filepath.Join(dir, "containerd.sock"), NRISocket: filepath.Join(dir, "nri.sock")}
	all := checked(t, o)
	for _, name := range []string{"containerd", "NRI", "agent"} {
		if all[name].Name == "" || all[name].OK {
			t.Errorf("%s: %+v", name, all[name])
		}
	}
	for _, name := range []string{"stop", "keepers", "state directory"} {
		if !all[name].OK {
			t.Errorf("%s: %+v", name, all[name])
		}
	}
	if _, err := os.Stat(state); err == nil {
		t.Error("the state directory was made")
	}

	left := filepath.Join(state, "keepers", "4026531840-7")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := keeper.WriteStopped(state, keeper.Stopped{Reason: "an outage", Since: time.Now()}); err != nil {
		t.Fatal(err)
	}
	all = checked(t, o)
	if c := all["keepers"]; c.OK || !strings.Contains(c.Detail, left) {
		t.Errorf("a keeper's folder is left: %+v", c)
	}
	if c := all["stop"]; c.OK || !strings.Contains(c.Detail, "an outage") || c.Fix != "faultgraft release" {
		t.Errorf("the node is stopped: %+v", c)
	}
}

// With an agent that NRI has configured, and no containerd.
func TestCheckNodeWithAgent(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	o := NodeCheckOptions{StateDir: filepath.Join(dir, "state"), ContainerdAddress: filepath.Join(dir, "containerd.sock"), NRISocket: filepath.Join(dir, "nri.sock"), Version: "v1"}
	startAgent(t, Options{Grafter: &node{}, StateDir: o.StateDir, NRISocket: o.NRISocket, ContainerdAddress: o.ContainerdAddress, StartBudget: time.Second, Version: "v1"})
	until(t, "the agent answers", func() bool { return checked(t, o)["agent"].OK })
	all := checked(t, o)
	if c := all["agent and containerd"]; c.Name == "" || c.OK {
		t.Errorf("containerd is not there: %+v", c)
	}
	if _, ok := all["time-outs"]; ok {
		t.Error("time-outs are known before NRI has said any")
	}
	startRuntimeSide(t, o.NRISocket, "log: {}", []*api.PodSandbox{}, []*api.Container{}).waitSync(t)
	until(t, "the agent is registered", func() bool { return checked(t, o)["agent and NRI"].OK })
	all = checked(t, o)
	if c := all["time-outs"]; c.Name == "" || !strings.Contains(c.Detail, "1s") {
		t.Errorf("time-outs: %+v", c)
	}
	if !all["NRI"].OK {
		t.Errorf("NRI: %+v", all["NRI"])
	}
	o.Version = "v2"
	if c := checked(t, o)["agent"]; c.OK || !strings.Contains(c.Detail, `"v1"`) {
		t.Errorf("an agent of another version: %+v", c)
	}
}

func TestCheckTimeouts(t *testing.T) {
	for _, test := range []struct {
		budget, limit time.Duration
		ok            bool
	}{{1500 * time.Millisecond, 2 * time.Second, true}, {1501 * time.Millisecond, 2 * time.Second, false}, {5 * time.Second, 2 * time.Second, false}} {
		all := checkSources(Health{StartBudget: Duration(test.budget), RequestTimeout: Duration(test.limit)})
		i := slices.IndexFunc(all, func(c graft.Check) bool { return c.Name == "time-outs" })
		if i < 0 || all[i].OK != test.ok || all[i].OK != (all[i].Fix == "") {
			t.Errorf("%+v: %+v", test, all)
		}
	}
}

func TestCheckConfig(t *testing.T) {
	dir := t.TempDir()
	good, bad, none := filepath.Join(dir, "good"), filepath.Join(dir, "bad"), filepath.Join(dir, "none")
	if err := os.WriteFile(good, []byte("log: {level: debug}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad, []byte("lgo: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c := checkConfig([]string{none}); !c.OK {
		t.Errorf("no file: %+v", c)
	}
	if c := checkConfig([]string{good, none}); !c.OK || !strings.Contains(c.Detail, good) {
		t.Errorf("a good file: %+v", c)
	}
	if c := checkConfig([]string{good, bad}); c.OK || !strings.Contains(c.Detail, bad) || !strings.Contains(c.Detail, "lgo") || c.Fix == "" {
		t.Errorf("a bad file: %+v", c)
	}
}

// Processes called as the shim tell by their environment which runc they find.
func TestCheckWrapper(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	wrapper, plain := filepath.Join(dir, "wrapper"), filepath.Join(dir, "plain")
	for _, d := range []string{wrapper, plain} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	shim := filepath.Join(dir, "containerd-shim-runc-v2")
	for _, file := range []string{shim, filepath.Join(plain, "runc"), filepath.Join(dir, "faultgraft")} {
		if err := os.WriteFile(file, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "faultgraft"), filepath.Join(wrapper, "runc")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{wrapper + ":" + plain, plain} {
		cmd := exec.Command(shim, "1000")
		cmd.Env = []string{"A=b", "PATH=" + path}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
	// others may run on this machine, and come and go
	shims, wrapped, err := wrappedShims("/proc")
	if err != nil || wrapped < 1 || shims <= wrapped {
		t.Errorf("%d of %d, %v", wrapped, shims, err)
	}
	if c := checkWrapper(); !c.OK {
		t.Errorf("%+v", c)
	}
	for environ, want := range map[string]string{
		"PATH=" + plain + "\x00X=y": filepath.Join(plain, "runc"), "PATH=/nowhere": "", "": "", "XPATH=" + plain: "",
	} {
		if got := firstRunc([]byte(environ)); got != want {
			t.Errorf("%q: %q", environ, got)
		}
	}
}
