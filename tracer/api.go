package tracer

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is the way in which a process refers to a file.
type Kind int

// The kinds of objects.
const (
	Descriptor Kind = iota // a slot of the descriptor table
	Cwd                    // the working directory
	Root                   // the root directory
	Map                    // a memory map
	Executable             // what the process was started from, /proc/PID/exe

	// What the kernel holds beside these. It is never swapped, but reported.
	InFlight   // a descriptor that was sent over a unix socket and not received yet
	RingFile   // a fixed file of an io_uring
	AIOContext // a context of io_setup(2), whose requests may be under way
	Watch      // a watch of inotify or fanotify
	Polled     // an entry of an epoll instance
	LoopDevice // the file behind a loop device
	SwapFile   // a file that the machine swaps to
)

var kindNames = [...]string{"descriptor", "cwd", "root", "map", "executable",
	"in flight", "io_uring file", "aio context", "watch", "epoll entry", "loop device", "swap file"}

// String returns the name of the kind as it stands in reports.
func (k Kind) String() string {
	if k >= 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", int(k))
}

// HeldByKernel says that objects of the kind are neither descriptors nor
// directories nor maps, and are never swapped.
func (k Kind) HeldByKernel() bool { return k >= InFlight }

// MarshalText writes the kind as its name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *Kind) UnmarshalText(b []byte) error {
	for i, n := range kindNames {
		if n == string(b) {
			*k = Kind(i)
			return nil
		}
	}
	return fmt.Errorf("%q is no kind of object", b)
}

// Object is one place in a process that refers to a file.
type Object struct {
	PID     int    `json:"pid"`               // process (thread group) id
	TID     int    `json:"tid"`               // a thread whose table, directories or memory it is in; the PID unless threads have their own
	Kind    Kind   `json:"kind"`              //
	FD      int    `json:"fd"`                // number, for Descriptor; of the socket for InFlight, of the ring for RingFile, of the instance for Watch and Polled; else -1
	Path    string `json:"path"`              // text of the link in /proc, without " (deleted)": relative to the root of the reader's mount namespace where it can be; "/" for one that is longer than the kernel shows
	Deleted bool   `json:"deleted,omitempty"` // the link text ended in " (deleted)"
	MountID uint64 `json:"mountID"`           // as in fdinfo and mountinfo
	Dev     uint64 `json:"dev"`               // st_dev
	Ino     uint64 `json:"ino"`               // st_ino
	Mode    uint32 `json:"mode"`              // st_mode
	Flags   int    `json:"flags"`             // open flags of the description as in fdinfo, with O_CLOEXEC of the slot; for Map O_RDONLY or O_RDWR

	Start  uint64 `json:"start,omitempty"`  // first address, for Map
	End    uint64 `json:"end,omitempty"`    // address after the last, for Map
	Offset uint64 `json:"offset,omitempty"` // offset in the file, bytes, for Map
	Shared bool   `json:"shared,omitempty"` // MAP_SHARED, for Map
	Prot   int    `json:"prot,omitempty"`   // PROT_READ, PROT_WRITE, PROT_EXEC, for Map

	Index int `json:"index,omitempty"` // for InFlight the place in the queue, for RingFile the slot in the ring, for Watch of inotify the watch descriptor, for Polled the number of the descriptor, for LoopDevice that of the device
}

// String names the object as a person would look for it under /proc.
func (o *Object) String() string {
	switch o.Kind {
	case Descriptor:
		return fmt.Sprintf("descriptor %d of process %d (%s)", o.FD, o.PID, o.Path)
	case Map:
		return fmt.Sprintf("map %x-%x of process %d (%s)", o.Start, o.End, o.PID, o.Path)
	case InFlight:
		return fmt.Sprintf("descriptor in flight to socket %d of process %d (%s)", o.FD, o.PID, o.Path)
	case RingFile:
		return fmt.Sprintf("fixed file %d of io_uring %d of process %d (%s)", o.Index, o.FD, o.PID, o.Path)
	case AIOContext:
		return fmt.Sprintf("aio context of process %d", o.PID)
	case Watch:
		if o.Path == "" {
			return fmt.Sprintf("watch %d of descriptor %d of process %d (inode %d)", o.Index, o.FD, o.PID, o.Ino)
		}
		return fmt.Sprintf("watch %d of descriptor %d of process %d (%s)", o.Index, o.FD, o.PID, o.Path)
	case Polled:
		return fmt.Sprintf("descriptor %d in epoll instance %d of process %d (%s)", o.Index, o.FD, o.PID, o.Path)
	case LoopDevice, SwapFile:
		return fmt.Sprintf("%s %s", o.Kind, o.Path)
	default:
		return fmt.Sprintf("%s of process %d (%s)", o.Kind, o.PID, o.Path)
	}
}

// Description is one file that is to be replaced, with all that hold it: for
// Descriptor one open file description (open(2)), however many slots in
// however many processes share it.
type Description struct {
	Kind    Kind
	Path    string // see Object
	Deleted bool
	MountID uint64
	Dev     uint64
	Ino     uint64
	Mode    uint32
	Flags   int // without O_CLOEXEC
	// File is a descriptor of ours: for Descriptor the very description
	// (pidfd_getfd(2)); for Cwd and Root an O_PATH one; for Map the file opened
	// anew through /proc/PID/map_files with Flags, or with O_PATH if
	// Options.MapsByPath. It belongs to tracer, and is open from the call of
	// Replace until Swap returns; dup it to keep it.
	File    int
	Holders []Object
}

// Replacement is the file that goes in the place of a Description; FD counts only without an error.
type Replacement struct {
	FD  int
	Err error
	// Lender, if it is not nil, has FD open instead of this process, for a Descriptor alone.
	Lender *Lender
}

// ReplaceAtOnce is how many descriptions ReplaceAll is called for at most: as many as can be sent in one message (SCM_MAX_FD, include/net/scm.h), and
// some to spare.
const ReplaceAtOnce = 200

// Lock is a POSIX record lock (fcntl(2), F_SETLK) of a process.
type Lock struct {
	Type  int16 `json:"type"`  // F_RDLCK or F_WRLCK
	Start int64 `json:"start"` // bytes from the start of the file
	Len   int64 `json:"len"`   // bytes; 0 is to the end of the file and beyond
}

// Steps at which Options.Step is called, in this order. A process can pass
// some of them several times, once for each of its tables.
const (
	StepScan    = "scan"    // before anything is looked at
	StepReplace = "replace" // before Replace is called for what the live scan found
	StepSeize   = "seize"   // before the first thread is seized
	StepStopped = "stopped" // all stopped and looked at again; before Options.Stopped
	StepInject  = "inject"  // before code is placed into each thread that will run it
	StepStage   = "stage"   // before files are sent to each of these threads and maps are prepared beside the old
	StepCommit  = "commit"  // before each of these threads exchanges its slots, directories and maps
	StepLocks   = "locks"   // within the exchange of a thread that has POSIX locks, with GuardLocks: before LocksTaken
	StepCheck   = "check"   // after each exchange, before its result is looked at
	StepRelease = "release" // all exchanged; before the code is taken out again and the threads go on
)

// Options says what is to be swapped for what.
type Options struct {
	// Processes lists the candidates. It is asked again, while stopping, until
	// no new process with a matching object turns up. The own process, kernel
	// threads and zombies in it are passed over.
	Processes func() ([]int, error)
	// Match says whether an object is part of the swap. It sees every object
	// whose link text starts with "/": also FIFOs and devices, never sockets
	// and other nameless files. It must be quick: it is called while the
	// processes are stopped. Of a RingFile, LoopDevice and SwapFile it sees the
	// Path only, of a Watch Dev and Ino (MountID alone for a mark of fanotify on a
	// mount, Dev alone for one on a file system) and what Locate finds, of a Polled
	// Dev and Ino, and the rest only if the descriptor is open still. Here Dev is
	// that of the file system, which btrfs and overlayfs do not show in st_dev.
	// Where the Path of such an object is not empty and does not start with "/",
	// nothing is known but that the process may have one.
	Match func(*Object) bool
	// Locate, if set, finds the path of a watched inode, of which the kernel tells
	// no more than the device of its file system, the number, and mostly a file
	// handle. ok is false for one that is not part of the swap: Match is not asked.
	// It is called while the processes run, and within the stop for what came late.
	Locate func(dev, ino uint64, handle *unix.FileHandle) (path string, ok bool)
	// Device, if it is not 0, is the st_dev of all descriptors and maps to be swapped, of a
	// file system that shows the same number in /proc/PID/maps (btrfs and overlayfs
	// do not). It spares a closer look at all others.
	Device uint64
	// Replace returns the file that goes in the place of d, which belongs to
	// tracer from then on. It is called before the stop for what a live scan
	// finds, and within the stop for what came late. After an error the holders
	// of d are left as they are and reported; with RequireAll the transaction
	// fails. tracer copies to the new file what a description carries beside
	// its file: offset, O_APPEND, O_NONBLOCK, O_DIRECT, O_NOATIME, owner and
	// signal of asynchronous I/O.
	Replace func(d *Description) (fd int, err error)
	// ReplaceAll, if set, is called instead of Replace, for at most ReplaceAtOnce descriptions at a time, and answers for all in their order.
	ReplaceAll func(all []*Description) []Replacement
	// Locks returns the POSIX locks of the process at the object, which must be
	// taken again on the new file. It is for file systems whose locks the kernel
	// does not show in fdinfo, which is not read then.
	Locks func(*Object) []Lock
	// OwnLocks, if set, is asked once more where threads of a process have descriptor tables of their own: of
	// the locks that Locks has told, for those of the table of thread TID, which has made an F_GETLK just before.
	OwnLocks func(*Object) []Lock
	// Locked reports that somebody has such a lock, of Locks, on the object's file.
	// It is asked while the processes run.
	Locked func(*Object) bool
	// InUse: the descriptions that Replace gives are used by others, such as a server, until those that they replace are not. So
	// what they are like is asked within the stop.
	InUse bool
	// Settle is called for each description and its replacement while all its
	// holders are stopped, right before the exchange, of many for two at a time. An error fails the swap.
	Settle func(d *Description, fd int) error
	// MayWait says whether Settle may have to wait for a file system, or somebody else; with nil whether Step or Locks may, within the stop.
	// Then they are called on another thread, which can be given up and costs some 80 µs each time. Not set: they may.
	MayWait func(d *Description) bool
	// GuardLocks, if set, keeps POSIX locks from others while they go over from
	// the files that are exchanged to the new ones. It is called for each phase,
	// with the locks of one process in full, though it has read locks at that
	// time (see LockPhase). back: they go over in the other direction, in a rollback.
	GuardLocks func(phase LockPhase, files []LockedFile, back bool) error
	// LocksElsewhere: the files that are exchanged take no lock any more, because their server is dead, and GuardLocks has the locks
	// that Locks tells. It makes read locks of them for LocksLeave, lets go of them for LocksTaken, and where they
	// go back makes them what they were for LocksKept. A lock that a process cannot have again is told to LockLost,
	// and the swap goes on: there is nothing to go back to.
	LocksElsewhere bool
	LockLost       func(o *Object, l Lock, why error)
	// Seized is called once every thread is seized and told to stop, and none
	// was waited for: the moment to release threads that sleep in a file system
	// whose server died.
	Seized func() error
	// Stopped is called once, when the first processes are stopped and nothing is
	// changed yet.
	Stopped func() error
	// Undo reverses Stopped, in a rollback after Stopped succeeded. It is not
	// called when other processes have been let go with new files already.
	Undo func() error
	// Exchanged is called once, when everything is exchanged: with the processes
	// still stopped if they are stopped all at once, else when the last are on
	// their way. An error fails the swap.
	Exchanged func() error
	// Step, if set, is called before each step with one of the Step constants.
	// An error makes the transaction roll back.
	Step func(step string) error
	// Progress, if set, is called wherever the swap comes on, while the processes run and while they stand: before each process and each
	// of its descriptors that is looked at, and for each file that is asked for. It must be quick.
	Progress func()
	// RestartErrnos: a system call that a stop finds returning one of these is
	// restarted, and a SIGBUS that a page fault raises while the processes are
	// being stopped is dropped (the access is tried again). For files whose
	// server died: ECONNABORTED, ENOTCONN.
	RestartErrnos []syscall.Errno
	// MapsByPath gives Replace the files of maps as O_PATH descriptors: for
	// file systems that cannot answer an open any more. A rollback of such maps
	// may then fail.
	MapsByPath bool
	// NeverEmpty exchanges each slot in one step (dup3) instead of closing
	// many and filling them in order. Right where closing what is there now is
	// slow (FUSE, NFS); else it costs a close of each new file.
	NeverEmpty bool
	// Executables has files that are mapped for execution exchanged too, and what
	// processes were started from. Without, both are left as they are.
	Executables bool
	// RequireAll makes the transaction fail when a matching object cannot be
	// swapped, or when it cannot be told whether one matches, instead of reporting
	// it. Executable maps are never swapped and do not count.
	RequireAll bool
	// RequireRoom has the swap fail, while nothing is changed, when this process may not have as many files open as it takes (EMFILE, ENFILE).
	// Else what it could not open is left as it is, and reported.
	RequireRoom bool
	// Together stops all processes at once. Else those that share nothing are
	// stopped one group after another, so that each stands still only for its own
	// exchange. What makes a group: open file descriptions, descriptor tables or
	// memory in common; a file of which one has a map while one may write to it; and
	// a file on which one has a POSIX lock.
	Together bool
	// Deadline is how long all may take from the first thread seized to the last
	// exchange begun. Default 2 s.
	Deadline time.Duration
	// Hung, if set, is told in words when the tracing thread has waited for seconds beyond the Deadline while processes stand, for something
	// that only its death ends. It is to end this process, which lets them go with what they have by then; if it does not, it is told again. It
	// is called on a goroutine of its own.
	Hung func(what string)
	// OwnProcess: this process does nothing but this swap, so that all its threads get a real-time priority while processes stand, not only those of tracer.
	OwnProcess bool
	// Budget is how long a process may have been stopped when its exchange begins;
	// beyond it, its group is put back and the swap fails. 0 is no limit but the
	// Deadline.
	Budget time.Duration
}

// Phases are parts of a pause. With several groups of processes each is the sum
// over them.
type Phases struct {
	Stop     time.Duration `json:"stop"`     // until all threads stand and were looked at again
	Inject   time.Duration `json:"inject"`   // until code runs in a thread for each table, directories and memory
	Exchange time.Duration `json:"exchange"` // until every object is exchanged and checked
	Resume   time.Duration `json:"resume"`   // until every thread is let go
}

// Add adds the times of other.
func (p *Phases) Add(other Phases) {
	p.Stop += other.Stop
	p.Inject += other.Inject
	p.Exchange += other.Exchange
	p.Resume += other.Resume
}

// Report tells what a swap did. Durations are nanoseconds in JSON.
type Report struct {
	Prepare     time.Duration   `json:"prepare"` // before the first thread was seized
	Pause       time.Duration   `json:"pause"`   // from the first thread seized to the last one resumed
	Phases      Phases          `json:"phases"`
	Groups      int             `json:"groups"` // of processes that were stopped one after another
	Processes   []ProcessReport `json:"processes,omitempty"`
	Swapped     []ObjectReport  `json:"swapped,omitempty"`
	Skipped     []ObjectReport  `json:"skipped,omitempty"`
	Kept        []ObjectReport  `json:"kept,omitempty"`       // left on the file they are at, and working there: Watch, AIOContext
	RemoteCalls int             `json:"remoteCalls"`          // system calls made inside the targets
	NoPriority  string          `json:"noPriority,omitempty"` // why threads were not lent a real-time priority while they were stopped
}

// ProcessReport is what happened to one process that was stopped.
type ProcessReport struct {
	PID     int           `json:"pid"`
	Comm    string        `json:"comm"`
	Threads int           `json:"threads"`
	Pause   time.Duration `json:"pause"` // from its first thread seized to its last one resumed
}

// ObjectReport is an object, and the reason why it was not swapped.
type ObjectReport struct {
	Object Object `json:"object"`
	Reason string `json:"reason,omitempty"`
}
