package plugin

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/vm"
)

// inCgroup starts a shell in a cgroup of its own, which obeys what is written to it.
func inCgroup(t *testing.T, name string) (pid int, run func(command string) string) {
	t.Helper()
	dir := filepath.Join("/sys/fs/cgroup", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for end := time.Now().Add(10 * time.Second); os.Remove(dir) != nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, func(command string) string {
		t.Helper()
		if _, err := fmt.Fprintf(in, "%s; echo END\n", command); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		b := make([]byte, 4096)
		for !strings.Contains(said.String(), "END\n") {
			n, err := out.Read(b)
			if err != nil {
				t.Fatalf("the shell has ended: %v: %s", err, said.String())
			}
			said.Write(b[:n])
		}
		return said.String()
	}
}

// mountOnce mounts in the shell and says what came of it.
const mountOnce = "mount -t tmpfs x /tmp/m && umount /tmp/m && echo FINE"

// The agent on a real kernel: a fault is in force for the cgroup and nobody
// else, is listed, counted and logged, ends when it is told to, and ends with the
// agent unless it is to outlive it; the next agent finds that and ends it.
func TestAgentHoldsKernelFaults(t *testing.T) {
	vm.NeedFault(t)
	if err := os.MkdirAll("/tmp/m", 0o755); err != nil {
		t.Fatal(err)
	}
	pid, shell := inCgroup(t, "agent-target")
	_, other := inCgroup(t, "agent-other")
	o := Options{StateDir: filepath.Join(t.TempDir(), "state"), ContainerdAddress: "/nowhere.sock", DisableNRI: true, Grafter: &node{}}
	start := func() *agentRun {
		a := startAgent(t, o)
		until(t, "the agent answers", func() bool { _, err := a.client.Health(t.Context()); return err == nil })
		return a
	}
	a := start()
	rule := policyRule(t, "kernel hook=syscall:mount error=ENOMEM ttl=5m")
	req := KernelRequest{Target: keeper.Target{ID: "pid", PID: pid}, Rules: []policy.Rule{rule}}
	fails := func(why string) {
		t.Helper()
		if out := shell(mountOnce); !strings.Contains(out, "emory") {
			t.Errorf("%s: %q", why, out)
		}
		if out := other(mountOnce); !strings.Contains(out, "FINE") {
			t.Errorf("%s: the other cgroup: %q", why, out)
		}
	}
	works := func(why string) {
		t.Helper()
		if out := shell(mountOnce); !strings.Contains(out, "FINE") {
			t.Errorf("%s: %q", why, out)
		}
	}
	works("before")
	made, err := a.client.InjectKernel(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	fails("armed")
	list, err := a.client.KernelFaults(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != made[0].ID || list[0].Kernel.Counters.Injected == 0 {
		t.Errorf("list: %+v, %v", list, err)
	}
	injected := list[0].Kernel.Counters.Injected
	text, err := a.client.Metrics(t.Context())
	if want := fmt.Sprintf(`faultgraft_kernel_faults_injected_total{container="pid",fault=%q,hook="syscall:mount",rule="u"} %d`, made[0].ID, injected); err != nil || !strings.Contains(text, want) {
		t.Errorf("metrics lack %s: %v", want, err)
	}
	faults := func() (n uint64) {
		if err := keeper.ReadEvents(t.Context(), o.StateDir, false, func(e keeper.Event) error {
			if e.Type == keeper.EventFault {
				if n++; e.Errno != "ENOMEM" || e.Hook != "syscall:mount" || e.Comm != "mount" || e.Graft != made[0].ID || e.PID == 0 || e.Cgroup == 0 {
					t.Errorf("event %+v", e)
				}
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		return n
	}
	until(t, "every fault is in the log", func() bool { return faults() == injected })
	if f, err := a.client.EndKernel(t.Context(), made[0].ID); err != nil || f.Kernel.Counters.Injected != injected {
		t.Errorf("recover: %+v, %v", f, err)
	}
	works("recovered")

	// The end of the agent is the end of its faults.
	if _, err := a.client.InjectKernel(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	fails("armed again")
	a.cancel()
	if err := a.wait(t); err != nil {
		t.Error(err)
	}
	works("the agent has ended")

	a = start()
	req.Outlive = true
	if made, err = a.client.InjectKernel(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	a.cancel()
	if err := a.wait(t); err != nil {
		t.Error(err)
	}
	fails("outlives the agent")
	a = start()
	list, err = a.client.KernelFaults(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != made[0].ID || !list[0].Kernel.Outlive {
		t.Errorf("the next agent lists %+v, %v", list, err)
	}
	fails("taken over")
	if _, err := a.client.EndKernel(t.Context(), made[0].ID); err != nil {
		t.Error(err)
	}
	works("ended by the next agent")
	if left, err := (Direct{}).List(); err != nil || len(left) != 0 {
		t.Errorf("pinned still: %+v, %v", left, err)
	}

	// The cgroups that a fault must never be in.
	for who, p := range map[string]int{"init": 1, "this process": os.Getpid()} {
		req.Target.PID = p
		if _, err := a.client.InjectKernel(t.Context(), req); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", who, err)
		}
	}
}
