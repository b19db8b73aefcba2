package keeper

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/faultgraft/faultgraft/fusefs"
)

// faultLog writes a layer's faults to the event log, off the path of the request.
type faultLog struct {
	log    *EventLog
	events chan fusefs.Event
	done   chan struct{}
	call   serveCall
	logger *slog.Logger
	mu     sync.Mutex
	lost   uint64
	closed bool
}

// faultQueue is how many faults may wait for the disk before they are only counted.
const faultQueue = 1 << 16

func newFaultLog(dir string, c serveCall, logger *slog.Logger) (*faultLog, error) {
	l, err := OpenEventLog(dir)
	if err != nil {
		return nil, err
	}
	f := &faultLog{log: l, events: make(chan fusefs.Event, faultQueue), done: make(chan struct{}), call: c, logger: logger}
	go f.run()
	return f, nil
}

func (f *faultLog) record(e fusefs.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	select {
	case f.events <- e:
	default:
		f.lost++
	}
}

func (f *faultLog) run() {
	defer close(f.done)
	for e := range f.events {
		if err := f.log.Write(faultEvent(f.call.Layer, f.call.Target, e)); err != nil {
			f.mu.Lock()
			f.lost++
			f.mu.Unlock()
		}
	}
}

func (f *faultLog) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	close(f.events)
	<-f.done
	if f.lost > 0 {
		e := Event{Type: EventLost, Graft: f.call.Layer, Target: f.call.Target.ID, N: f.lost, Message: fmt.Sprintf("%d faults were injected but not logged: the log could not keep up or is full", f.lost)}
		if err := f.log.Write(e); err != nil {
			f.logger.Error("write the event log", "lost", f.lost, "err", err)
		}
	}
	if err := f.log.Close(); err != nil {
		f.logger.Error("close the event log", "err", err)
	}
}
