package keeper

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// What a keeper says of its grafts.

// statusSoon asks for the counters, but not for long: who lists grafts is not to
// wait for a server that hangs. A layer that is just being made or taken off has
// no answer. What was last seen stands in.
func statusSoon(server *serverClient, id string) []RuleStatus {
	answer := make(chan []RuleStatus, 1)
	go func() {
		status, _ := server.status(id)
		answer <- status
	}()
	select {
	case status := <-answer:
		return status
	case <-time.After(time.Second):
		return nil
	}
}

func (k *keeper) all() []*held {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Values(k.grafts))
}

// list is the state of all grafts, with the counters of their rules.
func (k *keeper) list() []Graft {
	k.mu.Lock()
	server := k.server
	k.mu.Unlock()
	all := k.all()
	out := make([]Graft, len(all))
	var wg sync.WaitGroup
	for i, h := range all { // side by side: each waits for a server that hangs
		wg.Go(func() { out[i] = k.look(server, h) })
	}
	wg.Wait()
	return out
}

// look is the state of a graft as its server tells it now; as it was last seen, if that does not.
func (k *keeper) look(server *serverClient, h *held) Graft {
	var status []RuleStatus
	var faults []FaultCount
	if server != nil && server.alive() {
		status = statusSoon(server, h.ID)
		faults = countsSoon(server, h.ID)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if status != nil {
		h.status = status
	}
	if faults != nil {
		h.faults = faults
	}
	g := h.Graft
	g.Rules, g.Faults = h.status, h.faults
	return g
}
