package kernel

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	faults "github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/test/vm"
)

// node is a faultgraft plugin of the test's own.
type node struct {
	t     testing.TB
	state string // state directory
	log   string
	cmd   *exec.Cmd
}

// startNode starts faultgraft plugin and ends it, with all its faults, after the
// test. Then nothing may be left in the kernel.
func startNode(t testing.TB) *node {
	t.Helper()
	noLeaks(t)
	dir := t.TempDir()
	n := &node{t: t, state: filepath.Join(dir, "state"), log: filepath.Join(dir, "log")}
	n.again()
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(n.log)
			t.Logf("the agent's log ends with:\n%s", text[max(0, len(text)-3000):])
		}
		if out, err := n.faultgraft("recover", "--all"); err != nil {
			t.Errorf("recover --all: %v: %s", err, out)
		}
		if err := n.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		_ = n.cmd.Wait() // the interrupt is its end
	})
	return n
}

// again starts the plugin, also after its death, and waits until it answers.
func (n *node) again() {
	n.t.Helper()
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	config := n.state + ".yaml"
	write(n.t, config, "labels: {namespaces: [default], hooks: [\"syscall:mount\"]}\n")
	n.cmd = exec.Command(os.Getenv("FAULTGRAFT_BIN"), "--state-dir", n.state, "--config", config, "plugin", "--disable-nri")
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	await(n.t, "the agent answers", func() bool {
		_, err := os.Stat(filepath.Join(n.state, "daemon.sock"))
		return err == nil
	})
}

// faultgraft runs a command of the binary.
func (n *node) faultgraft(args ...string) (string, error) {
	return command(patience, append([]string{os.Getenv("FAULTGRAFT_BIN"), "--state-dir", n.state}, args...)...)
}

// kill ends the plugin as kill -9 does.
func (n *node) kill() {
	n.t.Helper()
	if err := n.cmd.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	_ = n.cmd.Wait()
	if err := os.Remove(filepath.Join(n.state, "daemon.sock")); err != nil && !os.IsNotExist(err) { // again waits for the next one
		n.t.Fatal(err)
	}
}

// listed is a kernel fault as ps -o json lists it.
type listed struct {
	ID     string `json:"id"`
	Target struct {
		Name string `json:"name"`
	} `json:"target"`
	Origin string `json:"origin"`
	Kernel struct {
		Cgroup   faults.Cgroup   `json:"cgroup"`
		Counters faults.Counters `json:"counters"`
		Outlive  bool            `json:"outlive"`
	} `json:"kernel"`
}

// ps lists the faults of the node.
func (n *node) ps() []listed {
	n.t.Helper()
	out, err := exec.Command(os.Getenv("FAULTGRAFT_BIN"), "--state-dir", n.state, "ps", "-o", "json").Output()
	if err != nil {
		n.t.Fatalf("ps: %v: %s", err, out)
	}
	var all []listed
	if err := json.Unmarshal(out, &all); err != nil {
		n.t.Fatalf("ps: %v: %s", err, out)
	}
	return all
}

// K11, with the real agent and command: inject --kernel fails mounts in the
// container, ps counts them, and kill -9 of the agent ends it.
func TestInjectCommand(t *testing.T) {
	vm.Need(t)
	n := startNode(t)
	c := start(t, "command", mountLoop)
	before := inKernel(t)
	out, err := n.faultgraft("inject", "--pid", itoa(c.pid()), "--kernel", "hook=syscall:mount error=ENOMEM ttl=30m")
	if err != nil || !strings.Contains(out, "k-") {
		t.Fatalf("inject: %v: %s", err, out)
	}
	await(t, "mount prints "+noMemory, func() bool { return count(c.output(), noMemory) > 1 })
	if all := n.ps(); len(all) != 1 || !strings.HasPrefix(all[0].ID, "k-") || all[0].Kernel.Counters.Injected == 0 {
		t.Errorf("ps: %+v", all)
	}

	n.kill()
	awaitNothingBut(t, before)
	awaitMounts(t, c) // what failed before is printed by then
	failed := count(c.output(), noMemory)
	awaitMounts(t, c)
	if now := count(c.output(), noMemory); now != failed {
		t.Errorf("%d mounts failed after the agent's death", now-failed)
	}
	n.again()
}
