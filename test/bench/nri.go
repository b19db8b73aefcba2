package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"

	"github.com/faultgraft/faultgraft/plugin"
)

// nriLatency measures how long the runtime waits for the agent when a container
// without faults is made and started (P5): containerd's half of NRI, package
// adaptation, in this process; a real agent, on its socket, that knows 1,000 policies.
func (b *bench) nriLatency() (err error) {
	const policyCount, containers = 1000, 2000
	dir := filepath.Join(b.dir, "nri")
	plugins, socket, state := filepath.Join(dir, "plugins"), filepath.Join(dir, "nri.sock"), filepath.Join(dir, "state")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		return err
	}
	synced := make(chan struct{}, 1)
	runtime, err := adaptation.New("containerd", "v2.4.2",
		func(ctx context.Context, sync adaptation.SyncCB) error {
			_, err := sync(ctx, nil, nil)
			if err == nil {
				synced <- struct{}{}
			}
			return err
		},
		func(context.Context, []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
			return nil, errors.New("not asked for")
		},
		adaptation.WithPluginPath(plugins), adaptation.WithPluginConfigPath(dir), adaptation.WithSocketPath(socket))
	if err != nil {
		return err
	}
	if err := runtime.Start(); err != nil {
		return err
	}
	defer runtime.Stop()
	stopContainerd, err := serveEmptyContainerd(filepath.Join(dir, "containerd.sock"))
	if err != nil {
		return err
	}
	defer stopContainerd()
	agent := exec.Command(b.faultgraft, "plugin", "--nri-socket", socket, "--containerd-address", filepath.Join(dir, "containerd.sock"))
	agent.Env = append(os.Environ(), "FAULTGRAFT_STATE="+state)
	var said bytes.Buffer
	agent.Stderr = &said
	if err := agent.Start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, agent.Process.Signal(syscall.SIGTERM), agent.Wait())
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, said.String())
		}
	}()
	select {
	case <-synced:
	case <-time.After(30 * time.Second):
		return errors.New("the agent does not register with NRI")
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := plugin.NewClient(state).Health(context.Background()); err == nil {
			break
		} else if time.Now().After(end) {
			return err
		}
	}
	if err := applyPolicies(b.faultgraft, state, dir, policyCount); err != nil {
		return err
	}
	sleeper := exec.Command("sleep", "1000")
	if err := sleeper.Start(); err != nil {
		return err
	}
	defer func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait() // killed
	}()
	took := map[string][]time.Duration{}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	pod := &api.PodSandbox{Id: "pod", Name: "web-0", Namespace: "shop", Labels: map[string]string{"app": "web"}}
	for i := range containers {
		c := &api.Container{
			Id: fmt.Sprintf("%064x", i), PodSandboxId: pod.Id, Name: fmt.Sprintf("c%d", i), State: api.ContainerState_CONTAINER_CREATED,
			Labels: map[string]string{"app": "web", "tier": fmt.Sprint("t", i%50), "io.kubernetes.container.name": "main"},
		}
		begin := time.Now()
		if _, err := runtime.CreateContainer(ctx, &adaptation.CreateContainerRequest{Pod: pod, Container: c}); err != nil {
			return err
		}
		took["CreateContainer"] = append(took["CreateContainer"], time.Since(begin))
		c.Pid = uint32(sleeper.Process.Pid)
		begin = time.Now()
		if err := runtime.StartContainer(ctx, &adaptation.StartContainerRequest{Pod: pod, Container: c}); err != nil {
			return err
		}
		took["StartContainer"] = append(took["StartContainer"], time.Since(begin))
	}
	const goal = 50 * time.Millisecond
	fmt.Printf("NRI, ms for a container without faults, %d containers, %d policies known\n", containers, policyCount)
	for _, request := range []string{"CreateContainer", "StartContainer"} {
		all := took[request]
		slices.Sort(all)
		at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))]) / float64(time.Millisecond) }
		verdict := "met"
		if at(0.99) >= goal.Seconds()*1000 {
			verdict = "MISSED"
		}
		fmt.Printf("  %-16s median %.2f  p99 %.2f  max %.2f  goal: p99 below 50: %s\n", request, at(0.5), at(0.99), at(1), verdict)
	}
	fmt.Println()
	return nil
}

// applyPolicies gives the agent policies that select other containers, a hundred at a time.
func applyPolicies(faultgraft, state, dir string, n int) error {
	const batch = 100
	for first := 0; first < n; first += batch {
		var text strings.Builder
		for i := first; i < min(first+batch, n); i++ {
			fmt.Fprintf(&text, `---
apiVersion: faultgraft.io/v1alpha1
kind: FaultPolicy
metadata: {name: p%d}
spec:
  selector: {matchLabels: {app: app-%d}, matchExpressions: [{key: tier, operator: In, values: [t%d, db]}]}
  faults:
  - {name: slow, io: {path: "/data/**", ops: [read], latency: 10ms}}
`, i, i, i%50)
		}
		file := filepath.Join(dir, "policies.yaml")
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			return err
		}
		cmd := exec.Command(faultgraft, "apply", "-f", file)
		cmd.Env = append(os.Environ(), "FAULTGRAFT_STATE="+state)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("faultgraft apply: %w: %.500s", err, out)
		}
	}
	return nil
}
