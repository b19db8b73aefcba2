package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// Labels and extensions by which containers of nerdctl and CRI are known.
const (
	labelNerdctlName   = "nerdctl/name"
	labelCRIKind       = "io.cri-containerd.kind"
	labelCRIContainer  = "io.kubernetes.container.name"
	labelCRIPod        = "io.kubernetes.pod.name"
	labelCRINamespace  = "io.kubernetes.pod.namespace"
	extensionContainer = "io.cri-containerd.container.metadata"
	extensionSandbox   = "io.cri-containerd.sandbox.metadata"
)

// reconnectMax bounds the pause between attempts to reach containerd.
const reconnectMax = 2 * time.Second

// containerdRuntime asks containerd for containers and their tasks.
type containerdRuntime struct {
	client  *client.Client
	address string
}

// dialContainerd makes a client; it connects when it is used, and again after containerd was restarted.
func dialContainerd(address string) (*containerdRuntime, error) {
	// containerd's own dialer polls for a socket that is not there and heeds no context.
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", address)
	}
	c, err := client.New(address, client.WithTimeout(reconnectMax), client.WithExtraDialOpts([]grpc.DialOption{grpc.WithContextDialer(dial)}))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	return &containerdRuntime{client: c, address: address}, nil
}

func (d *containerdRuntime) Close() error { return d.client.Close() }

// Lookup gives a container with its labels, annotations and task. It returns
// errGone if there is no such container, errSandbox if it is a pause container.
func (d *containerdRuntime) Lookup(ctx context.Context, k Key) (Container, error) {
	ctx = namespaces.WithNamespace(ctx, k.Namespace)
	rec, err := d.client.ContainerService().Get(ctx, k.ID)
	if errdefs.IsNotFound(err) {
		return Container{}, errGone
	}
	if err != nil {
		return Container{}, fmt.Errorf("containerd: container %s: %w", k, err)
	}
	if isSandbox(rec) {
		return Container{}, errSandbox
	}
	var pod *containers.Container
	if rec.SandboxID != "" {
		p, err := d.client.ContainerService().Get(ctx, rec.SandboxID)
		if err != nil && !errdefs.IsNotFound(err) {
			return Container{}, fmt.Errorf("containerd: sandbox %s: %w", rec.SandboxID, err)
		}
		if err == nil {
			pod = &p
		}
	}
	c, err := fromContainerd(k.Namespace, rec, pod)
	if err != nil {
		return Container{}, err
	}
	resp, err := d.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: k.ID})
	switch err = errgrpc.ToNative(err); {
	case errdefs.IsNotFound(err): // no task
	case err != nil:
		return Container{}, fmt.Errorf("containerd: task of %s: %w", k, err)
	default:
		c.PID = livePID(resp.GetProcess())
	}
	return c, nil
}

// livePID is the PID of a task that has a process; 0: it has none.
func livePID(p *tasktypes.Process) int {
	switch p.GetStatus() {
	case tasktypes.Status_CREATED, tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
		return int(p.GetPid())
	}
	return 0
}

// namespaces lists the containerd namespaces; only narrows the list down.
func (d *containerdRuntime) namespaces(ctx context.Context, only []string) ([]string, error) {
	all, err := d.client.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: list its namespaces: %w", d.address, err)
	}
	if len(only) > 0 {
		all = slices.DeleteFunc(all, func(n string) bool { return !slices.Contains(only, n) })
	}
	return all, nil
}

// list gives the containers of one namespace with their tasks, pause containers left out.
func (d *containerdRuntime) list(ctx context.Context, namespace string) ([]Container, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	recs, err := d.client.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("containerd: list the containers of namespace %s: %w", namespace, err)
	}
	resp, err := d.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("containerd: list the tasks of namespace %s: %w", namespace, errgrpc.ToNative(err))
	}
	pids := map[string]int{}
	for _, t := range resp.GetTasks() {
		pids[t.GetID()] = livePID(t)
	}
	pods := map[string]*containers.Container{}
	for i := range recs {
		if isSandbox(recs[i]) {
			pods[recs[i].ID] = &recs[i]
		}
	}
	var out []Container
	for _, rec := range recs {
		if isSandbox(rec) {
			continue
		}
		c, err := fromContainerd(namespace, rec, pods[rec.SandboxID])
		if err != nil {
			return nil, err
		}
		c.PID = pids[rec.ID]
		out = append(out, c)
	}
	return out, nil
}

// ids lists the containers of one namespace, pause containers left out.
func (d *containerdRuntime) ids(ctx context.Context, namespace string) ([]Key, error) {
	recs, err := d.client.ContainerService().List(namespaces.WithNamespace(ctx, namespace))
	if err != nil {
		return nil, fmt.Errorf("containerd: list the containers of namespace %s: %w", namespace, err)
	}
	var out []Key
	for _, rec := range recs {
		if !isSandbox(rec) {
			out = append(out, Key{namespace, rec.ID})
		}
	}
	return out, nil
}

// sandboxNamed finds a pause container by its id or the beginning of it.
func (d *containerdRuntime) sandboxNamed(ctx context.Context, only []string, ref string) (Key, error) {
	names, err := d.namespaces(ctx, only)
	if err != nil {
		return Key{}, err
	}
	for _, n := range names {
		recs, err := d.client.ContainerService().List(namespaces.WithNamespace(ctx, n))
		if err != nil {
			return Key{}, err
		}
		for _, rec := range recs {
			if isSandbox(rec) && strings.HasPrefix(rec.ID, ref) {
				return Key{n, rec.ID}, nil
			}
		}
	}
	return Key{}, ErrNotFound
}

// imageLabels gives the labels of an image's own configuration; errNoImage if there is no such image.
func (d *containerdRuntime) imageLabels(ctx context.Context, namespace, name string) (map[string]string, error) {
	image, err := d.client.GetImage(namespaces.WithNamespace(ctx, namespace), name)
	if err == nil {
		var spec ocispec.Image
		if spec, err = image.Spec(namespaces.WithNamespace(ctx, namespace)); err == nil {
			return spec.Config.Labels, nil
		}
	}
	if errdefs.IsNotFound(err) {
		return nil, errNoImage
	}
	return nil, fmt.Errorf("containerd: image %s: %w", name, err)
}

func isSandbox(c containers.Container) bool { return c.Labels[labelCRIKind] == "sandbox" }

// fromContainerd puts containerd's record of a container, and of its pod's
// sandbox if it has one, into ours. The task is not part of the record.
func fromContainerd(namespace string, rec containers.Container, pod *containers.Container) (Container, error) {
	out := Container{Key: Key{namespace, rec.ID}, Name: rec.ID, Image: rec.Image, Source: sourceContainerd}
	m := metadata{labels: rec.Labels}
	annotations, err := criAnnotations(rec, extensionContainer)
	if err != nil {
		return out, err
	}
	m.annotations = annotations
	if rec.Spec != nil {
		inSpec, devices, err := specMetadata(rec.Spec.GetValue())
		if err != nil {
			return out, fmt.Errorf("containerd: container %s: %w", rec.ID, err)
		}
		m.devices = devices
		if rec.Labels[labelCRIKind] == "" { // CRI's own come from its metadata
			m.annotations = inSpec
		}
	}
	if pod != nil {
		m.podLabels = pod.Labels
		if m.podAnnotations, err = criAnnotations(*pod, extensionSandbox); err != nil {
			return out, err
		}
	}
	if n := rec.Labels[labelNerdctlName]; n != "" {
		out.Name = n
	}
	if rec.Labels[labelCRIKind] == "container" {
		out.Pod, out.PodNamespace = rec.Labels[labelCRIPod], rec.Labels[labelCRINamespace]
		if n := rec.Labels[labelCRIContainer]; n != "" {
			out.Name = n
		}
		// crictl and other bare clients need not set the kubelet's labels; the metadata has the names in any case.
		name, err := criMetadata(rec, extensionContainer)
		if err != nil {
			return out, err
		}
		if n := name.Metadata.Config.Metadata.Name; n != "" {
			out.Name = n
		}
		if pod != nil {
			meta, err := criMetadata(*pod, extensionSandbox)
			if err != nil {
				return out, err
			}
			if id := meta.Metadata.Config.Metadata; id.Name != "" {
				out.Pod, out.PodNamespace = id.Name, id.Namespace
			}
		}
	}
	out.Labels, out.annotated = m.merge()
	out.meta = m
	return out, nil
}

// criForm is the part that we read of what the CRI plugin keeps with a
// container: JSON of a version of its own, the same since containerd 1.0.
type criForm struct {
	Version  string
	Metadata struct {
		Config struct {
			Metadata struct {
				Name      string `json:"name"`
				Namespace string `json:"namespace"`
			} `json:"metadata"`
			Annotations map[string]string `json:"annotations"`
		}
	}
}

func criMetadata(rec containers.Container, extension string) (criForm, error) {
	var form criForm
	any, ok := rec.Extensions[extension]
	if !ok || any == nil {
		return form, nil
	}
	if err := json.Unmarshal(any.GetValue(), &form); err != nil {
		return criForm{}, fmt.Errorf("containerd: container %s: CRI metadata %s: %w", rec.ID, extension, err)
	}
	if form.Version != "v1" {
		return criForm{}, fmt.Errorf("containerd: container %s: CRI metadata %s has version %q; this faultgraft knows v1", rec.ID, extension, form.Version)
	}
	return form, nil
}

func criAnnotations(rec containers.Container, extension string) (map[string]string, error) {
	form, err := criMetadata(rec, extension)
	return form.Metadata.Config.Annotations, err
}

// listAll gives the containers of the namespaces. One that fails is in the error; the others are there all the same.
func (d *containerdRuntime) listAll(ctx context.Context, only []string) ([]Container, error) {
	names, err := d.namespaces(ctx, only)
	if err != nil {
		return nil, err
	}
	var out []Container
	var errs []error
	for _, n := range names {
		cs, err := d.list(ctx, n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, cs...)
	}
	return out, errors.Join(errs...)
}
