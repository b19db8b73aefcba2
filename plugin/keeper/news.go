package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/faultgraft/faultgraft/plugin/wire"
)

// news carries what a server has to tell its keeper, off the path of the
// kernel's requests: an adopted file that saw its last close must be let go of,
// or its flock and the space of an unlinked file stay held; one that a rule can
// match by its new name has to be moved.
type news struct {
	conn   *wire.Conn
	log    *slog.Logger
	mu     sync.Mutex
	queue  []newsCall
	active bool
}

func newNews(conn *wire.Conn, log *slog.Logger) *news { return &news{conn: conn, log: log} }

func (n *news) tell(c newsCall) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.queue = append(n.queue, c)
	if !n.active {
		n.active = true
		go n.send()
	}
}

func (n *news) send() {
	for {
		n.mu.Lock()
		if len(n.queue) == 0 {
			n.active = false
			n.mu.Unlock()
			return
		}
		all := n.queue
		n.queue = nil
		n.mu.Unlock()
		// Without a deadline: what does not fit into the socket while the keeper is stopped would be given up in the middle
		// of a message, which ends the connection (see wire.Conn), and the keeper would hear of nothing any more. Nobody
		// waits for this but what is told later.
		_, err := n.conn.Call(context.Background(), callNews, all, nil)
		if err != nil {
			// The keeper has died; all its duplicates went with it.
			n.log.Debug("tell the keeper what happened", "news", len(all), "err", err)
		}
	}
}

// newsDesk is the keeper's side.
func (k *keeper) newsDesk(r *wire.Request) (any, []int, error) {
	defer wire.CloseAll(r.FDs)
	var all []newsCall
	if err := r.Decode(&all); err != nil {
		return nil, nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range all {
		h := k.grafts[c.Layer]
		switch {
		case h == nil:
		case c.Unused:
			k.unused(h)
		case c.Retired:
			k.coverSoon(h)
		case c.Crowded.Open > 0:
			k.log(Event{Type: EventServer, Graft: h.ID, Path: h.Path, N: c.Crowded.Open, Message: c.Crowded.String()})
		case c.Resent > 0:
			h.Resent += c.Resent
			k.log(Event{Type: EventServer, Graft: h.ID, Path: h.Path, N: c.Resent, Message: fmt.Sprintf("requests that the dead server had not answered and the next one was sent again: %d", c.Resent)})
		default:
			h.released(c.Released)
		}
	}
	return nil, nil, nil
}
