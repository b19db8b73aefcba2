package plugin

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
)

// runtimeSide is the runtime's half of NRI's protocol over a real socket: what
// containerd does with a plugin, in the same order and with the same time-outs.
type runtimeSide struct {
	api.PluginService // the plugin that was configured last
	config            string
	pods              []*api.PodSandbox
	containers        []*api.Container
	// synced gets the outcome of each plugin's configuration and synchronisation.
	synced chan error

	listener net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn
}

// Listen accepts plugins on a socket, as containerd does for those that it did not launch.
func (r *runtimeSide) Listen(t *testing.T, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	r.listener = l
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.Connect(c)
		}
	})
}

// Connect takes a plugin at the other end of a connection into service.
func (r *runtimeSide) Connect(c net.Conn) {
	r.mu.Lock()
	r.conns = append(r.conns, c)
	r.mu.Unlock()
	r.wg.Go(func() { r.synced <- r.serve(c) })
}

// Stop hangs up.
func (r *runtimeSide) Stop() {
	if r.listener != nil {
		_ = r.listener.Close()
	}
	r.mu.Lock()
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// registration is the runtime's service for the plugin.
type registration struct{ name chan string }

func (g registration) RegisterPlugin(_ context.Context, req *api.RegisterPluginRequest) (*api.Empty, error) {
	g.name <- req.GetPluginIdx() + "-" + req.GetPluginName()
	return &api.Empty{}, nil
}

func (registration) UpdateContainers(context.Context, *api.UpdateContainersRequest) (*api.UpdateContainersResponse, error) {
	return nil, errors.New("not asked for")
}

// serve registers, configures and synchronises one plugin; its services then go on until the connection ends.
func (r *runtimeSide) serve(c net.Conn) error {
	mux := multiplex.Multiplex(c, multiplex.WithBlockedRead())
	pc, err := mux.Open(multiplex.PluginServiceConn)
	if err != nil {
		return err
	}
	closed := make(chan struct{})
	client := ttrpc.NewClient(pc, ttrpc.WithOnClose(func() { close(closed) }))
	l, err := mux.Listen(multiplex.RuntimeServiceConn)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	g := registration{make(chan string, 1)}
	api.RegisterRuntimeService(server, g)
	r.wg.Go(func() { _ = server.Serve(context.Background(), l) }) // ends with the connection
	r.wg.Go(func() {
		<-closed
		_ = server.Close()
		_ = mux.Close()
	})
	mux.Unblock()
	plugin := api.NewPluginClient(client)
	err = func() error {
		select {
		case name := <-g.name:
			if name != "10-faultgraft" {
				return errors.New("registered as " + name)
			}
		case <-time.After(api.DefaultPluginRegistrationTimeout):
			return errors.New("not registered in time")
		}
		ctx, cancel := context.WithTimeout(context.Background(), api.DefaultPluginRequestTimeout)
		defer cancel()
		if _, err := plugin.Configure(ctx, &api.ConfigureRequest{
			Config: r.config, RuntimeName: "containerd", RuntimeVersion: "v2.4.2", NRIVersion: "v0.12.5",
			RegistrationTimeout: api.DefaultPluginRegistrationTimeout.Milliseconds(), RequestTimeout: api.DefaultPluginRequestTimeout.Milliseconds(),
		}); err != nil {
			return err
		}
		r.PluginService = plugin
		_, err := plugin.Synchronize(ctx, &api.SynchronizeRequest{Pods: r.pods, Containers: r.containers})
		return err
	}()
	if err != nil {
		_ = client.Close()
	}
	return err
}

func (r *runtimeSide) waitSync(t *testing.T) {
	t.Helper()
	select {
	case err := <-r.synced:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no plugin was synchronised within 20 s")
	}
}

func startRuntimeSide(t *testing.T, socket, config string, pods []*api.PodSandbox, containers []*api.Container) *runtimeSide {
	t.Helper()
	r := &runtimeSide{config: config, pods: pods, containers: containers, synced: make(chan error, 16)}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	r.Listen(t, socket)
	t.Cleanup(r.Stop)
	return r
}
