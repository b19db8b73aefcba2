package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"golang.org/x/sys/unix"
)

// nriStartTimeout bounds connect, registration and configuration; NRI itself allows 5 s for a registration.
const nriStartTimeout = 30 * time.Second

// nriReconnectMax bounds the pause between attempts to reach NRI.
const nriReconnectMax = 10 * time.Second

// errNRIClosed: the runtime ended the connection.
var errNRIClosed = errors.New("the runtime closed the NRI connection")

// launch is what containerd gives a plugin that it starts itself.
type launch struct {
	name, index string
	conn        net.Conn
}

// launchedByRuntime takes over the connection that NRI passes in the
// environment; nil: this process was started by somebody else. The environment
// and the descriptor are cleaned up, so that no keeper inherits them: a keeper
// outlives this process and would keep the connection open.
func launchedByRuntime() (*launch, error) {
	fdText, ok := os.LookupEnv(api.PluginSocketEnvVar)
	if !ok || fdText == "" {
		return nil, nil
	}
	l := &launch{name: os.Getenv(api.PluginNameEnvVar), index: os.Getenv(api.PluginIdxEnvVar)}
	for _, k := range []string{api.PluginSocketEnvVar, api.PluginNameEnvVar, api.PluginIdxEnvVar} {
		if err := os.Unsetenv(k); err != nil {
			return nil, err
		}
	}
	fd, err := strconv.Atoi(fdText)
	if err != nil || fd < 0 {
		return nil, fmt.Errorf("%s=%q: not a descriptor; this variable is set by containerd, do not set it by hand", api.PluginSocketEnvVar, fdText)
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "nri")
	conn, err := net.FileConn(f) // duplicates fd, close-on-exec
	if cerr := f.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("%s=%s: no connected socket: %w; this variable is set by containerd, do not set it by hand", api.PluginSocketEnvVar, fdText, err)
	}
	l.conn = conn
	return l, nil
}

// nriSession connects, registers and answers the runtime until the connection
// ends (errNRIClosed) or ctx does. connected tells whether it got as far as
// being configured; onStart is called then.
func nriSession(ctx context.Context, p *nriPlugin, onStart func(), opts ...stub.Option) (connected bool, err error) {
	closed := make(chan struct{})
	var once sync.Once
	opts = append(opts,
		stub.WithLogger(nriLogger{p.log}),
		stub.WithOnClose(func() { once.Do(func() { close(closed) }) }))
	s, err := stub.New(p, opts...)
	if err != nil {
		return false, fmt.Errorf("NRI: %w", err)
	}
	p.requestTimeout = s.RequestTimeout
	// Start has no time-out of its own for the configuration, and holds the stub's lock meanwhile.
	started := make(chan error, 1)
	go func() { started <- s.Start(ctx) }()
	limit := time.NewTimer(nriStartTimeout)
	defer limit.Stop()
	select {
	case err := <-started:
		if refused := p.refused.Load(); err != nil && refused != nil {
			err = *refused
		}
		if err != nil {
			return false, fmt.Errorf("NRI: %w", err)
		}
	case <-ctx.Done():
		return false, ctx.Err()
	case <-limit.C:
		return false, fmt.Errorf("NRI: not configured by the runtime within %v", nriStartTimeout)
	}
	onStart()
	select {
	case <-closed:
		return true, errNRIClosed
	case <-ctx.Done():
		s.Stop()
		return true, ctx.Err()
	}
}
