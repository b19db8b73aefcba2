package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// listener serves metrics and health over TCP: GET only, nothing that changes
// anything. Metrics name containers, rules and policies.
type listener struct {
	address string
	handler http.Handler
	log     *slog.Logger

	mu   sync.Mutex
	why  error  // why it does not listen
	addr string // where it does
}

// checkListen says what is wrong with an address to listen on. remote: it may be reached from other machines.
func checkListen(address string, remote bool) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		return fmt.Errorf("metrics.listen %q: write ADDRESS:PORT, as in 127.0.0.1:9464", address)
	}
	if host == "localhost" || remote {
		return nil
	}
	ip, err := netip.ParseAddr(host)
	if host != "" && err != nil {
		return fmt.Errorf("metrics.listen %q: the host is an IP address or localhost", address)
	}
	if host == "" || !ip.IsLoopback() {
		return fmt.Errorf("metrics.listen %q can be reached from other machines, by anybody: listen on 127.0.0.1, or say metrics.remote: true", address)
	}
	return nil
}

func newListener(address string, m *metrics, health func() Health, ready func() Readiness, log *slog.Logger) *listener {
	mux := http.NewServeMux()
	healthRoutes(mux, health, ready)
	mux.Handle("GET /metrics", m.handler(log))
	return &listener{address: address, handler: mux, log: log, why: errors.New("not listening yet")}
}

// handler answers scrapes, a few at a time: each asks the keepers.
func (m *metrics) handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 8,
	})
}

func (l *listener) set(addr string, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addr, l.why = addr, why
}

// trouble says why nothing listens; nil: it does.
func (l *listener) trouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why
}

// run listens until ctx ends. An address that is taken is tried again: the agent's work does not depend on it.
func (l *listener) run(ctx context.Context) {
	pause := backoff{max: reconnectMax}
	for ctx.Err() == nil {
		err := l.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if was := l.trouble(); was == nil || was.Error() != err.Error() {
			l.log.Error("metrics cannot be served over TCP; will try again", "address", l.address, "err", err)
		}
		l.set("", err)
		pause.sleep(ctx)
	}
}

func (l *listener) serve(ctx context.Context) error {
	var lc net.ListenConfig
	tcp, err := lc.Listen(ctx, "tcp", l.address)
	if err != nil {
		return err
	}
	l.set(tcp.Addr().String(), nil)
	l.log.Info("metrics and health over TCP", "address", tcp.Addr().String())
	srv := &http.Server{
		Handler: http.MaxBytesHandler(l.handler, 1), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 15 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(l.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		if err := srv.Close(); err != nil {
			l.log.Debug("close the metrics listener", "err", err)
		}
	})
	err = srv.Serve(tcp)
	if !stop() {
		<-stopped
		return ctx.Err()
	}
	return errors.Join(err, srv.Close())
}
