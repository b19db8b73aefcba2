package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
)

// LogName is the log's name in the state directory when containerd launched
// the agent: containerd gives a plugin no standard error.
const LogName = "daemon.log"

// maxLog is the size at which the log is moved aside as daemon.log.1 when the agent starts, bytes.
const maxLog = 16 << 20

// switchHandler hands log records to a handler that can be replaced while the
// agent runs: where to log is part of a configuration that comes later.
type switchHandler struct {
	to    *atomic.Pointer[slog.Handler]
	apply func(slog.Handler) slog.Handler
}

func newSwitchHandler(h slog.Handler) switchHandler {
	s := switchHandler{to: new(atomic.Pointer[slog.Handler]), apply: func(h slog.Handler) slog.Handler { return h }}
	s.to.Store(&h)
	return s
}

func (s switchHandler) set(h slog.Handler) { s.to.Store(&h) }

func (s switchHandler) handler() slog.Handler { return s.apply(*s.to.Load()) }

// Enabled implements slog.Handler.
func (s switchHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return s.handler().Enabled(ctx, l)
}

// Handle implements slog.Handler.
func (s switchHandler) Handle(ctx context.Context, r slog.Record) error {
	return s.handler().Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (s switchHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	apply := s.apply
	return switchHandler{s.to, func(h slog.Handler) slog.Handler { return apply(h).WithAttrs(attrs) }}
}

// WithGroup implements slog.Handler.
func (s switchHandler) WithGroup(name string) slog.Handler {
	apply := s.apply
	return switchHandler{s.to, func(h slog.Handler) slog.Handler { return apply(h).WithGroup(name) }}
}

// newHandler writes records as text or as one JSON object a line.
func newHandler(w io.Writer, format string, level slog.Leveler) slog.Handler {
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.NewJSONHandler(w, o)
	}
	return slog.NewTextHandler(w, o)
}

// openLog opens the log file of an agent that containerd launched.
func openLog(c LogConfig, stateDir string) (*os.File, error) {
	path := c.File
	if path == "" {
		path = filepath.Join(stateDir, LogName)
	}
	if s, err := os.Stat(path); err == nil && s.Mode().IsRegular() && s.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("log file: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log file: %w; name another one as log.file", err)
	}
	return f, nil
}
