package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI is a client of containerd's Container Runtime Interface, as the kubelet is.
type CRI struct {
	cri.RuntimeServiceClient
	Images cri.ImageServiceClient
	conn   *grpc.ClientConn
}

// Close ends the connection.
func (c *CRI) Close() error { return c.conn.Close() }

// CRI connects to the lab's CRI service.
func (l *Lab) CRI() (*CRI, error) {
	socket := "/run/containerd/containerd.sock"
	if !l.Private() {
		socket = strings.TrimPrefix(l.opts.External.Address, "unix://")
	}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		path, err := l.Path(socket) // looked up anew at each connection: containerd may have been restarted
		if err != nil {
			return nil, err
		}
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	conn, err := grpc.NewClient("passthrough:///containerd",
		grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to CRI: %w", err)
	}
	return &CRI{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn), conn}, nil
}

// Mount is a folder or file of the machine in a container.
type Mount struct {
	Host, Container string
	ReadOnly        bool
}

// ContainerSpec is one container of a pod.
type ContainerSpec struct {
	Name        string
	Image       string // default Image
	Command     []string
	Env         []string // NAME=value
	Annotations map[string]string
	Labels      map[string]string
	Mounts      []Mount
}

// PodSpec is a pod with the host network, which in the private lab is the lab's.
type PodSpec struct {
	Name        string
	Namespace   string // the Kubernetes one; default "default"
	Annotations map[string]string
	Labels      map[string]string
	Containers  []ContainerSpec
}

// Pod is a pod that was started.
type Pod struct {
	ID         string
	Containers []PodContainer
	lab        *Lab
	logs       string
}

// PodContainer is a container of a pod.
type PodContainer struct {
	ID, Name string
	PID      int // its first process; 0 when it has ended already
	log      string
}

// RunPod runs a pod and starts its containers. The caller removes it.
func (l *Lab) RunPod(ctx context.Context, spec PodSpec) (pod *Pod, err error) {
	c, err := l.CRI()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	base := filepath.Join(l.dir, "run", "podlogs")
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, fmt.Errorf("folder for pod logs: %w", err)
	}
	pod = &Pod{lab: l}
	if pod.logs, err = os.MkdirTemp(base, spec.Name+"-"); err != nil {
		return nil, fmt.Errorf("folder for the logs of pod %s: %w", spec.Name, err)
	}
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: spec.Name, Namespace: spec.Namespace, Uid: filepath.Base(pod.logs)},
		Annotations:  spec.Annotations,
		Labels:       spec.Labels,
		LogDirectory: pod.logs,
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	if l.Private() {
		config.Linux.CgroupParent = "/" + Namespace
	}
	sandbox, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("run pod %s: %w", spec.Name, err), os.RemoveAll(pod.logs))
	}
	pod.ID = sandbox.PodSandboxId
	for i := range spec.Containers {
		ctr, err := startContainer(ctx, c, pod, config, &spec.Containers[i])
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			return nil, errors.Join(fmt.Errorf("container %s of pod %s: %w", spec.Containers[i].Name, spec.Name, err), pod.Remove(clean))
		}
		pod.Containers = append(pod.Containers, *ctr)
	}
	return pod, nil
}

func startContainer(ctx context.Context, c *CRI, pod *Pod, sandbox *cri.PodSandboxConfig, spec *ContainerSpec) (*PodContainer, error) {
	image := spec.Image
	if image == "" {
		image = Image
	}
	config := &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: spec.Name},
		Image:       &cri.ImageSpec{Image: image},
		Command:     spec.Command,
		Annotations: spec.Annotations,
		Labels:      spec.Labels,
		LogPath:     spec.Name + ".log",
		Linux:       &cri.LinuxContainerConfig{},
	}
	for _, e := range spec.Env {
		k, v, _ := strings.Cut(e, "=")
		config.Envs = append(config.Envs, &cri.KeyValue{Key: k, Value: []byte(v)})
	}
	for _, m := range spec.Mounts {
		config.Mounts = append(config.Mounts, &cri.Mount{HostPath: m.Host, ContainerPath: m.Container, Readonly: m.ReadOnly})
	}
	created, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: sandbox})
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	if _, err := c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	status, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: created.ContainerId, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil {
		return nil, fmt.Errorf("status: containerd's verbose info: %w", err)
	}
	return &PodContainer{ID: created.ContainerId, Name: spec.Name, PID: info.PID, log: filepath.Join(pod.logs, config.LogPath)}, nil
}

// RemovePods removes the pods that have a label, as an earlier run may have left them.
func (l *Lab) RemovePods(ctx context.Context, key, value string) (err error) {
	c, err := l.CRI()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	pods, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: map[string]string{key: value}}})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for _, p := range pods.Items {
		if err := removePod(ctx, c, p.Id); err != nil {
			return err
		}
	}
	return nil
}

func removePod(ctx context.Context, c *CRI, id string) error {
	if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop pod %s: %w", id, err)
	}
	if _, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove pod %s: %w", id, err)
	}
	return nil
}

// Wait waits until the container has ended and returns its exit status.
func (p *Pod) Wait(ctx context.Context, c PodContainer) (code int32, err error) {
	client, err := p.lab.CRI()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	for {
		s, err := client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
		if err != nil {
			return 0, fmt.Errorf("status of container %s: %w", c.Name, err)
		}
		if s.Status.State == cri.ContainerState_CONTAINER_EXITED {
			return s.Status.ExitCode, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("container %s still runs: %w", c.Name, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Log returns what the container wrote, lines of both streams in their order.
func (c PodContainer) Log() (string, error) {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return "", fmt.Errorf("log of container %s: %w", c.Name, err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		// 2026-01-02T03:04:05.6Z stdout F text
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			if f[2] == "P" { // a part of a long line
				f[3] = strings.TrimSuffix(f[3], "\n")
			}
			out.WriteString(f[3])
		}
	}
	return out.String(), nil
}

// Remove stops and removes the pod with its containers and logs.
func (p *Pod) Remove(ctx context.Context) (err error) {
	c, err := p.lab.CRI()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := removePod(ctx, c, p.ID); err != nil {
		return err
	}
	return os.RemoveAll(p.logs)
}
