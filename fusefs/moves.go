package fusefs

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A retired file has two inodes until what is open of it has been moved. Maps through the
// old one are of the file below, one through the new one has pages of its own: it would
// not show what is written through the others, and when a page of it is written back, what
// they have stored in that page since is lost. So nothing is opened through the new inode
// until the move is over, but by the swapper that moves, whose files nobody uses yet.
//
// An open that has waited too long, or comes after a move that failed, is mixed (see
// enterMode): its maps are of the file below, too. An inode with such files cannot have
// maps with pages of its own, so that a swapper that has prepared others has to give up.
// One that is interrupted because the swapper stops its caller is not: the caller goes on when
// the move is over. Should the move fail, a map that it makes then has pages of its own.

// longestMove is how long the open of a file is held back after the file was retired.
const longestMove = 10 * time.Second

// moveTable tells those who wait for a move that it may be over.
type moveTable struct {
	mu   sync.Mutex
	news chan struct{} // closed and replaced by tell
}

func (t *moveTable) next() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.news == nil {
		t.news = make(chan struct{})
	}
	return t.news
}

func (t *moveTable) tell() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.news != nil {
		close(t.news)
		t.news = nil
	}
}

// BeginMove says that somebody begins to move what is open of retired files. Others wait for that who open them,
// also where a move failed before; EndMove ends it.
func (l *Layer) BeginMove() {
	now := time.Now()
	l.nodes.mu.RLock()
	defer l.nodes.mu.RUnlock()
	for _, all := range l.nodes.retired {
		for _, n := range all {
			if since := n.open.since.Load(); n.open.unmoved.Load() && since.IsZero() {
				n.open.since.CompareAndSwap(since, &now)
			}
		}
	}
}

// Moved says that what was open and mapped of retired files, which Retired has listed, has been moved, or
// is left where it is.
func (l *Layer) Moved(nodes []uint64) {
	var late []*node
	l.nodes.mu.RLock()
	for _, id := range nodes {
		n := l.nodes.byID[id]
		if n == nil || !n.open.retired.Load() {
			continue
		}
		n.open.unmoved.Store(false)
		n.kept.unmoved.Store(false)
		if next := l.nodes.current(n); next != n && next.open.through.Load() > 0 {
			late = append(late, next)
		}
	}
	l.nodes.mu.RUnlock()
	l.moves.tell()
	for _, n := range late { // it was opened mixed: a rule for maps would not see all
		l.renamed(n)
	}
}

// EndMove says that nobody is at work any more at what was retired before a time. What Moved
// was not called for stays as it is, and nobody waits for it.
func (l *Layer) EndMove(before time.Time) {
	l.nodes.mu.RLock()
	for _, all := range l.nodes.retired {
		for _, n := range all {
			if since := n.open.since.Load(); n.open.unmoved.Load() && since.Before(before) {
				n.open.since.CompareAndSwap(since, &time.Time{})
			}
		}
	}
	l.nodes.mu.RUnlock()
	l.moves.tell()
}

// unmoved are the retired inodes of the file of a node, which takes their place, from which what is open of them was not moved.
func (t *nodeTable) unmoved(n *node) (all []*node) {
	if t.splits.Load() == 0 || n.open.retired.Load() {
		return nil
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, o := range t.retired[n.key] {
		if o.open.unmoved.Load() {
			all = append(all, o)
		}
	}
	return all
}

// toMove is how long the open of a file has to wait for a move, as long as that is not over.
func (l *Layer) toMove(n *node) (longest time.Duration) {
	for _, o := range l.nodes.unmoved(n) {
		longest = max(longest, time.Until(o.open.since.Load().Add(longestMove)))
	}
	if longest > 0 && !l.mustSee(n) { // the rules have gone: all are passed through
		return 0
	}
	return longest
}

// awaitMove holds the open of a file back that has a retired inode. A caller that is
// stopped meanwhile is let go on: it may have to be moved itself, and will not get to
// use the file before that; stopped says so. Any other interrupt (Go programs send themselves many) has to wait.
func (l *Layer) awaitMove(cancel <-chan struct{}, n *node, by *fuse.InHeader) (stopped bool) {
	if l.o.Retire == nil || l.toMove(n) <= 0 || l.trusted.has(by.Pid) {
		return false
	}
	l.blocking(by)
	for {
		news := l.moves.next() // before the look
		left := l.toMove(n)
		if left <= 0 {
			return false
		}
		if cancel == nil {
			if tracer, gone := tracerOf(by.Pid); gone || tracer != 0 {
				return l.trusted.has(tracer)
			}
		}
		if cancel == nil {
			left = min(left, time.Millisecond)
		}
		t := time.NewTimer(left)
		select {
		case <-news:
		case <-cancel:
			cancel = nil
		case <-t.C:
		}
		t.Stop()
	}
}

// tracerOf gives the thread that traces a thread, 0 for none, as that of a swapper does those that it stops.
func tracerOf(tid uint32) (by uint32, gone bool) {
	w := statusLine(tid, "TracerPid:")
	if len(w) != 1 {
		return 0, true
	}
	n, err := strconv.ParseUint(w[0], 10, 32)
	return uint32(n), err != nil
}

// stopped reports that a thread is traced by a swapper that is at work.
func (l *Layer) stopped(tid uint32) bool {
	by, _ := tracerOf(tid)
	return l.trusted.has(by)
}

// takeInUse is called when a swapper is about to put the files that it has prepared in the place
// of those of retired inodes. From here on others are opened as they are. It fails if
// somebody could not wait, and has opened such a file in another way.
func (l *Layer) takeInUse() error {
	var next []*node
	l.nodes.mu.RLock()
	for key := range l.nodes.retired {
		if n := l.nodes.byKey[key]; n != nil {
			next = append(next, n)
		}
	}
	l.nodes.mu.RUnlock()
	for _, n := range next {
		o := &n.open
		o.mu.Lock()
		conflict := o.through.Load() > 0 && o.direct.Load() > 0
		o.used = o.direct.Load() > 0
		o.mu.Unlock()
		if conflict {
			return fmt.Errorf("fault layer of %q: a process that opens a file waits %v at most for it to be moved, and the move was not ready by then: try it again when there is less to do", l.o.Prefix, longestMove)
		}
	}
	return nil
}
