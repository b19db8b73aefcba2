package fusefs

import (
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A retired file has two inodes until what is open of it has been moved. Maps through the
// old one are of the file below, one through the new one has pages of its own: it would
// not show what is stored through the others, and when a page of it is written back, what
// they have stored in that page since is lost. So nothing is opened through the new inode
// until the move is over, but by the swapper that moves, whose files nobody uses yet.

// longestMove is how long an open may be held back. A move that takes longer goes on without that.
const longestMove = time.Second

// moveTable says whether files have been retired that are going to be moved.
type moveTable struct {
	mu    sync.Mutex
	end   chan struct{} // closed when the move is over; nil: there is none
	since time.Time     // when the last file was retired
}

// begin is called before a file is retired.
func (t *moveTable) begin(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since = now
	if t.end != nil {
		return
	}
	end := make(chan struct{})
	t.end = end
	time.AfterFunc(longestMove, func() { t.over(end) })
}

// over ends the move that began with this channel.
func (t *moveTable) over(end chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end == end && end != nil {
		close(end)
		t.end = nil
	}
}

func (t *moveTable) now() chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.end
}

// Moved says that what was open and mapped of the files that were retired before a time
// has been moved, or is left where it is.
func (l *Layer) Moved(before time.Time) {
	l.nodes.mu.RLock()
	for _, all := range l.nodes.retired {
		for _, n := range all {
			if n.open.unmoved.Load() && n.open.since.Before(before) {
				n.open.unmoved.Store(false)
				n.kept.unmoved.Store(false)
			}
		}
	}
	l.nodes.mu.RUnlock()
	l.moves.mu.Lock()
	end := l.moves.end
	if !l.moves.since.Before(before) {
		end = nil // another one is to come
	}
	l.moves.mu.Unlock()
	l.moves.over(end)
}

// awaitMove holds the open of a file back that has a retired inode. A caller that is
// stopped meanwhile is let go on: it may have to be moved itself, and will not get to
// use the file before that. Any other interrupt (Go programs send themselves many) has to wait.
func (l *Layer) awaitMove(cancel <-chan struct{}, n *node, by *fuse.InHeader) {
	if l.nodes.splits.Load() == 0 || n.open.retired.Load() {
		return
	}
	end := l.moves.now()
	if end == nil || !l.nodes.split(n) || l.trusted.has(by.Pid) {
		return
	}
	l.blocking(by)
	select {
	case <-end:
		return
	case <-cancel:
	}
	for !traced(by.Pid) {
		select {
		case <-end:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// traced reports that a thread has a tracer, as those have that a swap stops, or is gone.
func traced(tid uint32) bool {
	w := statusLine(tid, "TracerPid:")
	return len(w) != 1 || w[0] != "0"
}
