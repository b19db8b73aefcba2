package plugin

import (
	"slices"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// takePlace lets a container have faults, unless as many containers of the node
// have some as its limits allow. One that has faults, as in grafts, keeps them.
func (r *reconciler) takePlace(c *Container, rules []policy.Rule, grafts []keeper.Graft) error {
	if len(rules) == 0 {
		return nil
	}
	if slices.ContainsFunc(grafts, func(g keeper.Graft) bool { return g.Origin != keeper.OriginUser && g.State == keeper.StateActive }) {
		r.places.Adopt(c.Key) // since before this agent, or before the limits became narrower
		return nil
	}
	l := &r.settings.Load().limits
	running := 0
	if l.BySharing() {
		running = r.running()
	}
	err := r.places.Take(l, c.Key, running)
	c.waitsForPlace = err != nil
	return err
}

// running counts the containers that run and are not protected.
func (r *reconciler) running() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, rec := range r.records {
		if rec.known && rec.c.PID != 0 && rec.c.Protected == "" {
			n++
		}
	}
	return n
}

// givePlace makes room for another container when this one has no faults any more.
func (r *reconciler) givePlace(c *Container, out outcome) {
	changing := out.state == StatePending && c.PID != 0
	if out.state == StateActive || out.state == StateFailed || changing || c.waitsForPlace { // of a failed one something may be left
		return
	}
	r.lookAt(r.places.Give(c.Key))
}

func (r *reconciler) lookAt(keys []Key) {
	for _, k := range keys {
		r.queue.add(k, false)
	}
}
