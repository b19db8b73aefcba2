package plugin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// agentRun is Run in the background.
type agentRun struct {
	cancel context.CancelFunc
	ended  chan error
	client *Client
}

func startAgent(t *testing.T, o Options) *agentRun {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a := &agentRun{cancel: cancel, ended: make(chan error, 1), client: NewClient(o.StateDir)}
	if o.Limits == nil && o.ConfigFile == "" {
		o.Limits = optedIn()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	go func() { a.ended <- Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		_ = a.wait(t) // judged by the tests that end the agent themselves
	})
	return a
}

func (a *agentRun) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-a.ended:
		a.ended <- err
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the agent did not end within 20 s")
		return nil
	}
}

func (a *agentRun) state(t *testing.T, id string) State {
	t.Helper()
	list, _, err := a.client.Containers(t.Context())
	if err != nil {
		return ""
	}
	for _, c := range list {
		if c.ID == id {
			return c.State
		}
	}
	return ""
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: looks at the namespaces of processes")
	}
}

func pod(annotations map[string]string) *api.PodSandbox {
	return &api.PodSandbox{Id: "pod", Name: "web-0", Namespace: "prod", Annotations: annotations}
}

func ctr(id string, pid int, annotations map[string]string) *api.Container {
	return &api.Container{Id: id, PodSandboxId: "pod", Name: id, Pid: uint32(pid), State: api.ContainerState_CONTAINER_RUNNING, Annotations: annotations}
}

func TestRunByHandOverRestartsOfTheRuntime(t *testing.T) {
	needRoot(t)
	dir, n := t.TempDir(), &node{}
	notify := notifySocket(t)
	running, starting := startIdle(t, syscall.CLONE_NEWNS), startIdle(t, syscall.CLONE_NEWNS)
	a := startAgent(t, Options{
		Grafter: n, StateDir: filepath.Join(dir, "state"), NRISocket: filepath.Join(dir, "nri.sock"), ContainerdAddress: filepath.Join(dir, "no-containerd.sock"),
	})
	if got := notify(); !strings.HasPrefix(got, "READY=1\n") { // before either source is there
		t.Errorf("first message to the service manager: %q", got)
	}
	p := pod(map[string]string{"wal.faultgraft.io/pod": dataRule})
	socket := filepath.Join(dir, "nri.sock")
	r := startRuntimeSide(t, socket, "log: {}", []*api.PodSandbox{p}, []*api.Container{
		ctr("running", running, nil), {Id: "exited", PodSandboxId: "pod", Name: "exited", State: api.ContainerState_CONTAINER_STOPPED},
	})
	r.waitSync(t)
	until(t, "a container that ran before is grafted (P3)", func() bool { return a.state(t, "running") == StateActive })
	if s := a.state(t, "exited"); s != "" {
		t.Errorf("an exited container is known as %s", s)
	}

	// The start waits for the graft.
	if _, err := r.StartContainer(t.Context(), &api.StartContainerRequest{Pod: p, Container: ctr("starting", starting, nil)}); err != nil {
		t.Fatal(err)
	}
	if g := n.all(); len(g) != 2 || g[1].Target.PID != starting || g[1].Origin != keeper.OriginAnnotation {
		t.Errorf("grafts when the container starts: %+v", g)
	}
	h, err := a.client.Health(t.Context())
	if err != nil || !h.OK || !h.NRI.Connected || h.Containerd.Connected || h.Containerd.Reason == "" {
		t.Errorf("health %+v, %v", h, err)
	}

	r.Stop()
	until(t, "the lost connection is noticed", func() bool {
		h, err := a.client.Health(t.Context())
		return err == nil && !h.NRI.Connected
	})
	r = startRuntimeSide(t, socket, "", []*api.PodSandbox{p}, []*api.Container{ctr("running", running, nil), ctr("starting", starting, nil)})
	r.waitSync(t)
	until(t, "both are known to be active", func() bool { return a.state(t, "running") == StateActive && a.state(t, "starting") == StateActive })
	if n.count() != 2 {
		t.Errorf("%d grafts made, want the first two only", n.count())
	}
	if _, err := r.RemoveContainer(t.Context(), &api.RemoveContainerRequest{Pod: p, Container: ctr("running", 0, nil)}); err != nil {
		t.Fatal(err)
	}
	if s := a.state(t, "running"); s != "" {
		t.Errorf("a removed container is known as %s", s)
	}

	a.cancel()
	if err := a.wait(t); err != nil {
		t.Error(err)
	}
	if got := notify(); got != "STOPPING=1" {
		t.Errorf("last message to the service manager: %q", got)
	}
	if len(n.all()) != 2 {
		t.Error("the end of the agent took grafts off")
	}
	var left []string
	err = filepath.WalkDir(filepath.Join(dir, "state"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, d.Name())
		}
		return err
	})
	slices.Sort(left)
	if err != nil || !slices.Equal(left, []string{memoryFile}) {
		t.Errorf("left in the state directory: %v, %v; want the memory of the live tasks", left, err)
	}
}

// notifySocket is a service manager's end of sd_notify.
func notifySocket(t *testing.T) (next func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 256)
		k, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:k])
	}
}

func TestFaultIsNoReasonNotToStart(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	release := make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	n := &node{onGraft: func(t keeper.Target, _ keeper.Request) {
		if t.Name == "web-0/slow" {
			<-release
		}
	}}
	socket := filepath.Join(dir, "nri.sock")
	r := startRuntimeSide(t, socket, "", nil, nil)
	a := startAgent(t, Options{
		Grafter: n, StateDir: filepath.Join(dir, "state"), NRISocket: socket, ContainerdAddress: filepath.Join(dir, "no.sock"), StartBudget: 500 * time.Millisecond,
	})
	defer free()
	r.waitSync(t)
	start := func(id string, annotations map[string]string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), api.DefaultPluginRequestTimeout)
		defer cancel()
		c := ctr(id, startIdle(t, syscall.CLONE_NEWNS), annotations)
		if _, err := r.StartContainer(ctx, &api.StartContainerRequest{Pod: pod(nil), Container: c}); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	start("slow", map[string]string{"wal.faultgraft.io": dataRule})
	start("bad", map[string]string{"wal.faultgraft.io": "io error=EIOO op=read path=/data/**"})
	n.mu.Lock()
	n.refuse = errTest
	n.mu.Unlock()
	start("failing", map[string]string{"wal.faultgraft.io": dataRule})
	n.mu.Lock()
	n.refuse = nil
	n.mu.Unlock()
	if got := a.state(t, "bad"); got != StateRefused {
		t.Errorf("bad: %s", got)
	}
	text, err := a.client.Metrics(t.Context())
	if err != nil || !strings.Contains(text, "faultgraft_nri_late_total 1\n") {
		t.Errorf("the late start is not counted: %v", err)
	}
	free()
	until(t, "the late graft follows", func() bool { return a.state(t, "slow") == StateActive })
	until(t, "the failed graft is tried again", func() bool { return a.state(t, "failing") == StateActive })
}

// launchedConn gives this process what containerd gives a plugin that it launches, and the runtime the other end.
func launchedConn(t *testing.T, r *runtimeSide) {
	t.Helper()
	sv, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(api.PluginSocketEnvVar, strconv.Itoa(sv[0]))
	t.Setenv(api.PluginNameEnvVar, "faultgraft")
	t.Setenv(api.PluginIdxEnvVar, "10")
	f := os.NewFile(uintptr(sv[1]), "runtime")
	c, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	r.Connect(c)
	t.Cleanup(r.Stop)
}

func TestRunLaunchedByTheRuntime(t *testing.T) {
	needRoot(t)
	dir, n := t.TempDir(), &node{}
	state := filepath.Join(dir, "state")
	running := startIdle(t, syscall.CLONE_NEWNS)
	r := &runtimeSide{
		config: "stateDir: " + state + "\ncontainerdAddress: " + dir + "/no.sock\nlog: {level: debug}\n",
		pods:   []*api.PodSandbox{pod(nil)}, containers: []*api.Container{ctr("running", running, map[string]string{"wal.faultgraft.io": dataRule})},
		synced: make(chan error, 1),
	}
	launchedConn(t, r)
	ended := make(chan error, 1)
	go func() { ended <- Run(t.Context(), Options{Grafter: n, Limits: optedIn()}) }()
	r.waitSync(t)
	a := &agentRun{client: NewClient(state), ended: ended}
	until(t, "grafted", func() bool { return a.state(t, "running") == StateActive })
	for _, k := range []string{api.PluginSocketEnvVar, api.PluginNameEnvVar, api.PluginIdxEnvVar} {
		if v, ok := os.LookupEnv(k); ok {
			t.Errorf("keepers inherit %s=%s", k, v)
		}
	}
	r.Stop()
	if err := a.wait(t); err != nil {
		t.Errorf("the runtime ended the connection: %v", err)
	}
	if len(n.all()) != 1 {
		t.Error("the end of the agent took grafts off")
	}
	log, err := os.ReadFile(filepath.Join(state, LogName))
	if err != nil || !strings.Contains(string(log), "grafted") || !strings.Contains(string(log), "level=DEBUG") {
		t.Errorf("the log, %v: %s", err, log)
	}
	if _, err := os.Stat(filepath.Join(state, SocketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket file is left: %v", err)
	}
}

func TestLaunchedWithABadConfiguration(t *testing.T) {
	r := &runtimeSide{config: "stateDirr: /x\n", synced: make(chan error, 1)}
	launchedConn(t, r)
	err := Run(t.Context(), Options{Grafter: &node{}, Logger: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), `unknown field "stateDirr"`) {
		t.Errorf("%v", err)
	}
}

func TestConfigurationOfARunningAgent(t *testing.T) {
	a := &agent{base: Options{Grafter: &node{}, StateDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}, metrics: newMetrics(""), configured: make(chan struct{}), kick: make(chan struct{}, 1)}
	if err := a.setup(Config{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		a.stopWork()
		if err := a.runtime.Close(); err != nil {
			t.Error(err)
		}
	}()
	for text, want := range map[string]string{"containerdAddress: /other.sock": "containerdAddress is /other.sock", "limits: {defaultTTL: 1h, maxTTL: 1m}": "longer"} {
		c, err := ParseConfig("test.yaml", text)
		if err == nil {
			err = a.configure(c)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	c, err := ParseConfig("test.yaml", "containerdNamespaces: [lab]\nprotected: {namespaces: [infra]}\n")
	if err == nil {
		err = a.configure(c)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := a.loop.settings.Load()
	if !s.watches("lab") || s.watches("default") || s.limits.Protected.Namespaces[0] != "infra" {
		t.Errorf("%+v", s)
	}
	select {
	case <-a.kick:
	default:
		t.Error("the watcher is not told of other namespaces")
	}
}

func TestTwoAgents(t *testing.T) {
	dir := t.TempDir()
	o := Options{Grafter: &node{}, StateDir: dir, ContainerdAddress: filepath.Join(dir, "no.sock"), DisableNRI: true, Logger: slog.New(slog.DiscardHandler)}
	a := startAgent(t, o)
	until(t, "the first agent answers", func() bool {
		_, err := a.client.Health(t.Context())
		return err == nil
	})
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a second agent: %v", err)
	}
	if _, err := a.client.Health(t.Context()); err != nil {
		t.Errorf("the first agent lost its socket: %v", err)
	}
}

func TestRunRefusesBadOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"not an absolute path": {Grafter: &node{}, StateDir: "x"},
		"two digits":           {Grafter: &node{}, PluginIndex: "7"},
	} {
		if o.StateDir == "" {
			o.StateDir = t.TempDir()
		}
		if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}
