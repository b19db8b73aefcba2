package fusefs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Whether a request about a name that a dead server had begun was done is found out from what lies under the layer. Through
// the layer nobody else can have changed the name: the kernel holds the directory's lock until the request is answered
// (fs/namei.c). What somebody does behind the layer in these moments may be taken for it where this says so.

// clockSlack is how much earlier than it was a file system may believe that something happened: it looks at the clock once a
// tick (current_time in fs/inode.c), which is 10 ms at the most.
const clockSlack = 20 * time.Millisecond

// made reports whether what has the name now was made by the request that a dead server had begun: it is of the kind and
// has the owner, and was born between the begin and the server's end, at which it was dead already. Something that is quite
// the same and that somebody made behind the layer at that very time is taken for it.
func (s *ledgerSlot) made(end time.Time, by *fuse.InHeader, dir *node, name string, kind uint32) bool {
	var st unix.Statx_t
	if err := statxAt(dir.fd, name, &st); err != nil || uint32(st.Mode)&unix.S_IFMT != kind {
		return false
	}
	if st.Uid != by.Uid && by.Uid != 0 { // whom a server of files may take for somebody else
		return false
	}
	born := st.Ctime // of what was made a moment ago it is the same
	if st.Mask&unix.STATX_BTIME != 0 {
		born = st.Btime
	}
	at := time.Unix(born.Sec, int64(born.Nsec))
	return !at.Before(time.Unix(0, s.began).Add(-clockSlack)) && !at.After(end)
}

// removed reports whether a removal was done that a dead server had begun. A name that is not there was removed, be it
// by somebody else: the caller wanted it to be gone. Another object that has the name now was put there since.
func (s *ledgerSlot) removed(dir *node, name string) bool {
	now := at(dir, name)
	return now == inodeID{} || s.object != inodeID{} && now != s.object
}

// moved reports whether a rename was done that a dead server had begun: the source is where it was to go to.
func (s *ledgerSlot) moved(from *node, name string, to *node, newName string, flags uint32) bool {
	source, target := at(from, name), at(to, newName)
	if s.object == (inodeID{}) { // not known: of a file with many names some are not
		return source == inodeID{} && target != inodeID{}
	}
	if target != s.object || source == s.object { // both: two names of one file, of which a rename does nothing
		return false
	}
	return flags&unix.RENAME_EXCHANGE == 0 || s.replaced == inodeID{} || source == s.replaced
}

// at is the object that has a name now; none if there is none.
func at(dir *node, name string) inodeID {
	var st unix.Statx_t
	if err := statxAt(dir.fd, name, &st); err != nil {
		return inodeID{}
	}
	return keyOf(&st).inode()
}

// known is the object that a name is known to be.
func (t *nodeTable) known(dir *node, name string) inodeID {
	if n := t.named(dir, name); n != nil {
		return n.key.inode()
	}
	return inodeID{}
}
