package fusefs

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxSpare is how many readers without work are kept; each holds buffers.
	maxSpare = 2
	// watchTick is how often the watcher looks while there are requests.
	watchTick = 500 * time.Microsecond
	// restTicks without a request send the watcher to sleep.
	restTicks = 20
	// immediate is the time within which a read returns that did not have to wait.
	immediate = 3 * time.Microsecond
	// backlogLimit requests in a row that did not have to be waited for bring another reader.
	backlogLimit = 16
)

// watch looks for readers that take long for an answer (a disk, a lock, a page
// fault) and did not say so (device.blocking), and has others read meanwhile. It
// sleeps while there are no requests.
func (d *device) watch() {
	defer d.wg.Done()
	seen := map[*reader]uint64{}
	idle := 0
	for !d.over.Load() {
		if idle >= restTicks {
			d.asleep.Store(true)
			select {
			case <-d.awake:
			case <-d.ended:
			}
			d.asleep.Store(false)
			idle = 0
			continue
		}
		// Not time.Sleep: Go's timers are a millisecond apart where nothing else wakes the poller.
		tick := unix.NsecToTimespec(int64(watchTick))
		_ = unix.Nanosleep(&tick, nil) // EINTR: looked earlier
		idle++
		now := d.turns()
		for r, turn := range now {
			before, known := seen[r]
			if !known || turn != before {
				idle = 0
			} else if turn%2 != 0 {
				idle = 0
				d.replace(r, turn)
			}
		}
		seen = now
	}
}

// turns is where each reader is.
func (d *device) turns() map[*reader]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := make(map[*reader]uint64, len(d.all))
	for r := range d.all {
		now[r] = r.turn.Load()
	}
	return now
}

// stir wakes the watcher if it sleeps.
func (d *device) stir() {
	if !d.asleep.Load() {
		return
	}
	select {
	case d.awake <- struct{}{}:
	default: // it is being woken
	}
}
