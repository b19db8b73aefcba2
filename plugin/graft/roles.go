package graft

import (
	"context"

	"github.com/faultgraft/faultgraft/tracer"
)

// Server is the process that serves the layer, as the swapper sees it. It runs
// apart from the swapper because a process that serves a FUSE mount and has a
// file of that mount open becomes an unkillable zombie when it is killed.
type Server interface {
	// Arm makes the next opens by this thread adopt descriptions (which the server duplicates), in this order: at most tracer.ReplaceAtOnce.
	Arm(tid int, all []Adoption) error
	// Disarm ends it and says for each description what has become of it.
	Disarm(tid int) ([]Adopted, error)
	// Descriptions duplicates the backing descriptions of open handles, at most tracer.ReplaceAtOnce, and answers for each.
	Descriptions(handles []uint64) []tracer.Replacement
	// Backing duplicates an O_PATH descriptor of what lies under an inode of the layer; path is relative to the layer.
	Backing(ino uint64, path string) (int, error)
	// LockedFiles lists the inode numbers of files on which somebody has a POSIX lock through the layer.
	LockedFiles() (inodes []uint64, err error)
	// EndFlushes has closes of the layer's files no longer wait for the server, if no POSIX lock
	// depends on them. Locks that are taken later end with the last close of their description.
	EndFlushes() (bool, error)
	// KeepLocks begins and ends the exchange of retired files for those that take their place. It reports whether
	// somebody has POSIX locks at such files.
	KeepLocks(on bool) (held bool, err error)
	// Moved says that all that can be moved of retired files was moved. Until then others wait who open such a file.
	Moved(nodes []uint64) error
	// LocksToKeep is PosixLocks, and has closes of the process, which must be stopped, leave these locks
	// alone until KeepLocks ends the move.
	LocksToKeep(pid, tid int, ino uint64) ([]tracer.Lock, error)
	// GuardLocks keeps POSIX locks from others while they go over between files of the layer and those
	// below, from them to the layer or, leaving, back (see tracer.LockPhase).
	GuardLocks(phase tracer.LockPhase, files []GuardedFile, leaving bool) error
	// PosixLocks lists the POSIX locks that the process holds on the inode through the layer; if its thread tid, which must be
	// stopped, has made an F_GETLK, those of that thread's descriptor table.
	PosixLocks(pid, tid int, ino uint64) ([]tracer.Lock, error)
}

// Adoption is a description that a file of the layer is to wrap.
type Adoption struct {
	File int `json:"-"` // stays the caller's
	// Token is a name in the layer's root by which it is opened, for a file without a path of its own.
	Token string `json:"token,omitempty"`
	// Path is what the target calls it.
	Path string `json:"path"`
}

// Adopted tells under which handle a description was adopted, and by which of the thread's opens that adopted one, from 1 on; 0: by none.
type Adopted struct {
	Handle uint64 `json:"handle"`
	Nth    int    `json:"nth"`
}

// GuardedFile is a file with POSIX locks of a process. Dev is st_dev below the layer, 0 if it is not known.
type GuardedFile struct {
	PID   int           `json:"pid"`
	TID   int           `json:"tid"` // as of PosixLocks
	Dev   uint64        `json:"dev,omitempty"`
	Ino   uint64        `json:"ino"`
	Locks []tracer.Lock `json:"locks"`
}

// guarded names files as the layer knows them.
func guarded(files []tracer.LockedFile, layer uint64) []GuardedFile {
	var out []GuardedFile
	for _, f := range files {
		g := GuardedFile{PID: f.Object.PID, TID: f.Object.TID, Dev: f.Object.Dev, Ino: f.Object.Ino, Locks: f.Locks}
		if g.Dev == layer {
			g.Dev = 0
		}
		out = append(out, g)
	}
	return out
}

// Keeper is the process that owns the graft when the swapper has gone.
type Keeper interface {
	// Serve hands the new layer's descriptors over and returns when the layer answers.
	Serve(ctx context.Context, l Layer) error
	// Adopted leaves the original of an adopted description with the keeper.
	Adopted(descriptions []AdoptedDescription) error
}

// Layer is what a keeper holds of a graft.
type Layer struct {
	// Device is /dev/fuse, Mount the (first detached) mount, Backing an O_PATH descriptor of what lies under it.
	Device, Mount, Backing int
	// Bottom is the second mount of a layer over "/", which has the root directories of what ran before; -1 for none.
	Bottom int
	// PeerGroup is a clone in the propagation group that Backing's mount left; -1 for none.
	PeerGroup int
	Info      LayerInfo
}

// LayerInfo is the part of a layer that can be written down.
type LayerInfo struct {
	// Path is the layer's place as the target sees it, Prefix as readlink of /proc/PID/fd shows it here.
	Path   string `json:"path"`
	Prefix string `json:"prefix"`
	// Dev is st_dev of the layer.
	Dev uint64 `json:"dev"`
}

// Root: the layer lies over the target's root directory.
func (i LayerInfo) Root() bool { return i.Path == "/" }

// Remains are what a dead server had open, in the table of another process: of a target with many files this one has no room for them,
// beside what that has open.
type Remains struct {
	Lender *tracer.Lender // nil: there are none
	// Descriptions are what files of the layer stand for, by handle: the originals, and what the server had open for later ones.
	Descriptions map[uint64]int
	// Objects are what it had open of what lies under the layer (O_PATH), as far as it may have no path any more.
	Objects []int
	// Keep leaves files that this process opened with the lender, for as long as the swap takes, and gives their numbers there.
	Keep func(files []int) (numbers []int, err error)
}

// AdoptedDescription is an original description that a handle of the layer wraps.
type AdoptedDescription struct {
	Handle uint64
	File   int // stays the caller's
}
