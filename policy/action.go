package policy

import (
	"encoding/json"
	"fmt"
	"syscall"
	"time"
)

// WeightedErrno is one of the errors that a rule can answer with.
type WeightedErrno struct {
	Errno syscall.Errno
	// Weight is its share among the rule's errors; from 1.
	Weight uint32
}

type weightedJSON struct {
	Errno  string `json:"errno"`
	Weight uint32 `json:"weight"`
}

// MarshalJSON writes the errno by its name.
func (w WeightedErrno) MarshalJSON() ([]byte, error) {
	return json.Marshal(weightedJSON{ErrnoName(w.Errno), w.Weight})
}

// UnmarshalJSON reads the errno by its name.
func (w *WeightedErrno) UnmarshalJSON(b []byte) error {
	var j weightedJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	e, ok := ParseErrno(j.Errno)
	if !ok {
		return fmt.Errorf("unknown errno %q", j.Errno)
	}
	*w = WeightedErrno{e, j.Weight}
	return nil
}

// Distribution is the shape of a random latency.
type Distribution uint8

// The distributions. Mean and Spread of a Latency mean other things in each.
const (
	Fixed   Distribution = iota // always Base
	Uniform                     // Base to Base+Spread, evenly
	Normal                      // mean Base, standard deviation Spread; never below 0
	Exp                         // exponential, mean Base
	Pareto                      // least value Base, tail index Shape
)

// Latency is how long an operation waits.
type Latency struct {
	Kind Distribution  `json:"kind"`
	Base time.Duration `json:"base"`
	// Spread is what Uniform adds at most, and the standard deviation of Normal.
	Spread time.Duration `json:"spread,omitempty"`
	// Shape is the tail index (alpha) of Pareto, above 0.
	Shape float64 `json:"shape,omitempty"`
	// Cap is the longest wait; 0 means the rule's ttl.
	Cap time.Duration `json:"cap,omitempty"`
}

// Short makes a read or write transfer less than was asked for, at least one byte.
type Short struct {
	// Bytes is the most that is transferred; 0 when Share or Random says it.
	Bytes int64 `json:"bytes,omitempty"`
	// Share is the part of the request that is transferred, above 0 and below 1.
	Share float64 `json:"share,omitempty"`
	// Random draws from 1 to the size of the request less one.
	Random bool `json:"random,omitempty"`
}

// CorruptKind says what bytes become.
type CorruptKind uint8

// The kinds of corruption.
const (
	Bitflip CorruptKind = iota // one bit of each byte is flipped
	Zero                       // bytes become 0
	Random                     // bytes become random ones, each other than it was
)

// Corrupt changes data on its way: what a read or readlink returns, or what a
// write leaves in the file. The data's length stays.
type Corrupt struct {
	Kind CorruptKind `json:"kind"`
	// Places is how many runs of bytes are changed; from 1.
	Places uint32 `json:"places"`
	// Bytes is the length of each run at most; from 1. Its actual length is drawn.
	Bytes uint32 `json:"bytes"`
}

// TornKind says which part of a torn write reaches the file.
type TornKind uint8

// The kinds of torn writes.
const (
	Prefix  TornKind = iota // a prefix, of a whole number of units
	Sectors                 // any subset of the units that the write touches, never all
)

// Torn lets only a part of a write reach the file. The program is told that
// all was written, unless the rule has errors too.
type Torn struct {
	Kind TornKind `json:"kind"`
	// Unit is the size of what is written whole or not at all, bytes; counted from the start of the file.
	Unit uint32 `json:"unit"`
}

// Space ends the space of the paths that a rule matches.
type Space struct {
	// Bytes is how much can still be written from the rule's activation on.
	Bytes int64 `json:"bytes"`
	// Quota answers EDQUOT instead of ENOSPC.
	Quota bool `json:"quota,omitempty"`
}

// Throttle bounds the rate of the matching operations: they wait for their turn.
type Throttle struct {
	// BytesPerSec bounds the data of reads and writes; 0 means no bound.
	BytesPerSec int64 `json:"bytesPerSec,omitempty"`
	// OpsPerSec bounds the number of operations; 0 means no bound.
	OpsPerSec float64 `json:"opsPerSec,omitempty"`
	// BurstBytes and BurstOps are what may pass at once after a rest; 0 means a tenth of a second's worth.
	BurstBytes int64   `json:"burstBytes,omitempty"`
	BurstOps   float64 `json:"burstOps,omitempty"`
}

// Attr overrides attributes that stat(2) returns. What is nil stays. The kind of
// a file and the number of a device cannot be overridden; see fixedAttrs.
type Attr struct {
	Ino    *uint64    `json:"ino,omitempty"`
	Size   *uint64    `json:"size,omitempty"`
	Blocks *uint64    `json:"blocks,omitempty"`
	Atime  *time.Time `json:"atime,omitempty"`
	Mtime  *time.Time `json:"mtime,omitempty"`
	Ctime  *time.Time `json:"ctime,omitempty"`
	// Perm are the lower 12 bits of st_mode.
	Perm  *uint32 `json:"perm,omitempty"`
	Nlink *uint32 `json:"nlink,omitempty"`
	UID   *uint32 `json:"uid,omitempty"`
	GID   *uint32 `json:"gid,omitempty"`
}

// Range is a range of whole numbers, both ends included.
type Range struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// Contains reports whether n is in the range.
func (r Range) Contains(n uint64) bool { return r.From <= n && n <= r.To }

// Caller narrows a rule to some processes. What is empty matches all. The
// kernel's own requests (write-back, release) have no caller: a rule with any
// of these filters does not match them.
type Caller struct {
	// Comm are globs over the thread's name (proc(5), /proc/pid/comm).
	Comm []string `json:"comm,omitempty"`
	// Exe are globs over the path of the executable as the container sees it.
	Exe []string `json:"exe,omitempty"`
	// UID are file system user ids, in the initial user namespace.
	UID []Range `json:"uid,omitempty"`
	// PID are process ids in the innermost PID namespace of the process, the container's.
	PID []Range `json:"pid,omitempty"`
}

// Empty reports whether the filter matches every caller, the kernel included.
func (c *Caller) Empty() bool {
	return len(c.Comm) == 0 && len(c.Exe) == 0 && len(c.UID) == 0 && len(c.PID) == 0
}
