package keeper

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/faultgraft/faultgraft/fusefs"
)

// faultLog writes a layer's faults to the event log, off the path of the request.
// While nothing happens it has no memory to speak of.
type faultLog struct {
	log    *EventLog
	wake   chan struct{} // holds one; closed at the end
	done   chan struct{}
	call   serveCall
	logger *slog.Logger
	mu     sync.Mutex
	queue  []fusefs.Event
	bytes  int // of paths in it
	lost   uint64
	closed bool
}

// faultQueue is how many faults may wait for the disk before they are only counted.
const faultQueue = 1 << 16

// faultQueueBytes is how many bytes their paths may have, which the target chooses.
const faultQueueBytes = 16 << 20

func newFaultLog(dir string, c serveCall, logger *slog.Logger) (*faultLog, error) {
	l, err := OpenEventLog(dir)
	if err != nil {
		return nil, err
	}
	f := &faultLog{log: l, wake: make(chan struct{}, 1), done: make(chan struct{}), call: c, logger: logger}
	go f.run()
	return f, nil
}

func (f *faultLog) record(e fusefs.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return
	case len(f.queue) == faultQueue, f.bytes > faultQueueBytes:
		f.lost++
		return
	}
	f.queue = append(f.queue, e)
	f.bytes += len(e.Path)
	select {
	case f.wake <- struct{}{}:
	default: // it is awake
	}
}

func (f *faultLog) run() {
	defer close(f.done)
	for range f.wake {
		f.mu.Lock()
		all := f.queue
		f.queue, f.bytes = nil, 0
		f.mu.Unlock()
		for _, e := range all {
			if err := f.log.Write(faultEvent(f.call.Layer, f.call.Target, e)); err != nil {
				f.mu.Lock()
				f.lost++
				f.mu.Unlock()
			}
		}
	}
}

func (f *faultLog) close() {
	f.mu.Lock()
	f.closed = true
	close(f.wake) // what is queued has woken run already
	f.mu.Unlock()
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
