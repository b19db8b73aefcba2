package limits

import (
	"fmt"
	"sync"
)

// Account counts the containers of a node that have faults by labels and
// policies, and lets no more have them than the limits allow. K names a
// container. The zero value is ready; it may be used from any number of
// goroutines.
type Account[K comparable] struct {
	mu      sync.Mutex
	holders map[K]struct{}
	waiting map[K]struct{}
}

// Take lets a container have faults; nil: it may, and counts until Give. A
// container that has them already keeps them, also when the limits have become
// narrower. running is how many containers run on the node, protected ones left
// out. One that is refused, with an *Error, is remembered for Give.
func (a *Account[K]) Take(l *Limits, c K, running int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, has := a.holders[c]; has {
		return nil
	}
	n := len(a.holders)
	if err := l.allowsCount(n+1, running); err != nil {
		if a.waiting == nil {
			a.waiting = map[K]struct{}{}
		}
		a.waiting[c] = struct{}{}
		return err
	}
	a.add(c)
	return nil
}

// Adopt counts a container that has faults already, as after a restart of the agent.
func (a *Account[K]) Adopt(c K) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.add(c)
}

func (a *Account[K]) add(c K) {
	if a.holders == nil {
		a.holders = map[K]struct{}{}
	}
	a.holders[c] = struct{}{}
	delete(a.waiting, c)
}

// Give says that a container has no faults any more, or is gone. If that made
// room, it returns the containers that were refused before, to be looked at again.
func (a *Account[K]) Give(c K) (again []K) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.waiting, c)
	if _, has := a.holders[c]; !has {
		return nil
	}
	delete(a.holders, c)
	return a.takeWaiting()
}

// Waiting returns the containers that were refused, and forgets them: for when the limits or the number of running containers have changed.
func (a *Account[K]) Waiting() []K {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.takeWaiting()
}

func (a *Account[K]) takeWaiting() []K {
	out := make([]K, 0, len(a.waiting))
	for k := range a.waiting {
		out = append(out, k)
	}
	clear(a.waiting)
	return out
}

// Len is how many containers have faults.
func (a *Account[K]) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.holders)
}

// BySharing reports whether how many containers may have faults depends on how many run.
func (l *Limits) BySharing() bool { return l.maxPercent() < DefaultMaxPercent }

// allowsCount checks that n of the running containers may have faults.
func (l *Limits) allowsCount(n, running int) error {
	if most := int(l.Node.MaxContainers); most > 0 && n > most {
		return l.refuse("limits.maxContainers", fmt.Sprintf("`limits: {maxContainers: %d}`", n), "%d containers of this node have faults, as many as it allows", most)
	}
	running = max(running, n) // one may be seen before it counts as running
	if p := int(l.maxPercent()); n*100 > p*running {
		need := (n*100 + running - 1) / running
		return l.refuse("limits.maxPercent", fmt.Sprintf("`limits: {maxPercent: %d}`", need),
			"%d of the %d containers that run on this node and are not protected have faults; it allows %d%%, which are %d", n-1, running, p, p*running/100)
	}
	return nil
}
