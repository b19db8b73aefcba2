package fusefs_test

import (
	"fmt"
	"math/bits"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// call is one system call of a program. Which fields count depends on Op. It
// names open files and maps by slots, so that any part of a program is a program.
type call struct {
	Op         string
	Proc       int // which process makes it
	Behind     bool
	FD, To     int // slots
	Path, Into string
	Flags      int
	Mode       uint32
	Off, Off2  int64
	Len        int64
	Seed       byte // of the data that is written
	Key        string
	Value      []byte
	UID, GID   int
	Times      [2]unix.Timespec
	Look       bool // stat afterwards what it was about
	After      history
}

// history is what has been done so far: some things tell the layer from a plain
// directory then, or are no longer the same twice.
type history struct {
	// The map of a file that is passed through keeps the file below, and not, as
	// on any other file system, a description with its locks.
	Mapped bool
	// The making of a map and a splice at the end of a file are accesses, but no requests of FUSE.
	Unseen bool
	// What was written through a map fills holes by whole folios, which are not
	// of the same size everywhere; of space that was reserved, what is in the
	// page cache counts as data (mapping_seek_hole_data in mm/filemap.c).
	Filled bool
}

// program is a list of calls.
type program []call

// GoString is what rapid prints of it: the trace has all.
func (p program) GoString() string { return fmt.Sprintf("%d calls", len(p)) }

func (c call) String() string {
	s := c.Op
	if o, ok := ops[c.Op]; ok && o.show != nil {
		s = o.show(c)
	}
	if c.Proc != 0 {
		s = "other process: " + s
	}
	if c.Behind {
		s = "behind the layer: " + s
	}
	return s
}

// op is a kind of call: how its arguments are drawn, what it does at one side
// and how it is printed.
type op struct {
	name   string
	weight int
	args   func(*rapid.T, *call)
	run    func(*process, int, call) string
	show   func(call) string
	// about says what of the call can be looked at afterwards
	fd, to, path, into bool
}

// ops are all kinds by name; the families are in the files model_*_test.go.
var ops = map[string]op{}

var opOrder []string

func register(list ...op) bool {
	for _, o := range list {
		ops[o.name] = o
		opOrder = append(opOrder, o.name)
	}
	return true
}

func allOps() []op {
	var out []op
	for _, n := range opOrder {
		if ops[n].weight > 0 {
			out = append(out, ops[n])
		}
	}
	return out
}

const (
	fdSlots  = 4
	mapSlots = 2
	// cacheTime is a little more than what the layer lets the kernel keep names and attributes.
	cacheTime = 600 * time.Millisecond
)

var (
	long = strings.Repeat("n", 255)
	// paths are few, so that calls meet: files, folders, a link, one name that
	// is not UTF-8, and names at the limit and beyond.
	paths = []string{"a", "b", "d", "d/a", "d/b", "s", "d/e", "d/e/a", "n\xff\n", "d/s", ".", "a/x", long, long + "n"}
	fresh = []string{"b", "d/a", "d/e", "a", "d", "d/e/a", "c", "d/b", "n\xff\n", "s", long}
	users = []int{0, 1000, 1001}
	modes = []uint32{0o644, 0o666, 0o777, 0o755, 0o600, 0, 0o4755, 0o2775, 0o6777, 0o1777, 0o2644, 0o444, 0o222}
)

// below draws a number from 0 to n-1, each as likely as the others: rapid's own
// ranges prefer small numbers. The smallest is still the one it shrinks to.
func below(t *rapid.T, n int) int {
	const more = 4
	v, width := 0, bits.Len(uint(n))+more
	for range width {
		v <<= 1
		if coin.Draw(t, "bit") {
			v++
		}
	}
	return v * n >> width
}

var coin = rapid.Bool()

func pick[V any](t *rapid.T, from ...V) V { return from[below(t, len(from))] }

func drawPath(t *rapid.T) string  { return pick(t, paths...) }
func drawFresh(t *rapid.T) string { return pick(t, fresh...) }
func drawSlot(t *rapid.T) int     { return below(t, fdSlots) }
func drawMode(t *rapid.T) uint32  { return pick(t, modes...) }
func drawSeed(t *rapid.T) byte    { return byte(below(t, 256)) }

func drawOff(t *rapid.T) int64 {
	if below(t, 4) > 0 {
		return pick[int64](t, 0, 0, 4096, 5000, 1, 100, 4095, 4097, 8192, 12288, 20000, 65536, 1<<20, 1<<40, -1)
	}
	return int64(below(t, 20000))
}

func drawLen(t *rapid.T) int64 {
	if below(t, 3) > 0 {
		return pick[int64](t, 10, 4096, 1, 5000, 0, 8192, 100, 4095, 16384, 70000, 3<<19)
	}
	return int64(below(t, 12000))
}

// programs draws calls from a set of kinds.
func programs(from []op) *rapid.Generator[program] {
	var weighted []string
	for _, o := range from {
		for range o.weight {
			weighted = append(weighted, o.name)
		}
	}
	one := rapid.Custom(func(t *rapid.T) call {
		c := call{Op: pick(t, weighted...)}
		if below(t, 5) == 4 {
			c.Proc = 1
		}
		if o := ops[c.Op]; o.args != nil {
			o.args(t, &c)
		}
		c.Look = coin.Draw(t, "look")
		return c
	})
	some := rapid.SliceOfN(one, 0, 40)
	return rapid.Custom(func(t *rapid.T) program {
		var p program
		for range 7 { // rapid's slices have five elements or so
			p = append(p, some.Draw(t, "calls")...)
		}
		return p
	})
}

// programsBehind draws calls that are made below the layer, then others through
// it when its caches have expired.
func programsBehind() *rapid.Generator[program] {
	var behind, through []op
	for _, o := range allOps() {
		switch o.name {
		// only what goes by path: a description is either the layer's or not
		case "mkdir", "rmdir", "unlink", "rename", "link", "symlink", "mknod", "chmod", "chown", "truncate", "utimens", "setxattr", "removexattr", "writefile":
			behind = append(behind, o)
		}
		switch o.name {
		case "mmap", "mread", "mwrite", "msync", "munmap": // pages of maps stay: docs/layer.md
		case "pwritev2-append": // is at the end that the kernel knows, also when its time is over
		default:
			through = append(through, o)
		}
	}
	b, th := programs(behind), programs(through)
	return rapid.Custom(func(t *rapid.T) program {
		var p program
		for range 1 + below(t, 3) {
			p = append(p, th.Draw(t, "through")...)
			for _, c := range b.Draw(t, "behind") {
				c.Behind, c.Look = true, false
				p = append(p, c)
			}
			p = append(p, call{Op: "expire"})
		}
		return append(p, th.Draw(t, "last")...)
	})
}

// ruleSets are rules that no program may notice.
var ruleSets = [][]string{
	{"io error=EIO op=all path=/data/elsewhere/**"},
	{"io error=EIO op=all p=0"},
	{"io error=EIO op=data p=0"},
	{"io error=EIO op=mmap-read+mmap-write p=0"},
	{"io error=EIO op=read p=0 path=/data/*/a"},
	{"io latency=1m op=data p=0 path=/data/*/d/**", "io error=EIO op=lookup+getattr p=0 path=/data/*/b"},
	{},
}

// unswapped leaves out what tells the two inodes apart that a file has to the
// kernel when a rule comes while it is open, until what is open is swapped (which
// is not fusefs's affair): what one does not know of the size, and of the mode,
// that was changed through the other.
func unswapped(p program) program {
	var out program
	for _, c := range p {
		switch c.Op {
		case "open", "reopen", "tmpfile", "setfl":
			c.Flags &^= unix.O_APPEND
		case "pwritev2-append", "copy_file_range", "become":
			continue
		}
		out = append(out, c)
	}
	return out
}

// ruleOp is the change of rules, at the layer only.
func ruleOp(weight int) op {
	o := op{
		name: "rules", weight: weight,
		args: func(t *rapid.T, c *call) { c.Flags = below(t, len(ruleSets)) },
		show: func(c call) string { return fmt.Sprintf("rules %q", ruleSets[c.Flags]) },
	}
	ops[o.name] = o
	return o
}
