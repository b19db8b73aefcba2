package fusefs

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lock is a POSIX record lock.
type Lock struct {
	Type  int16 `json:"type"`  // F_RDLCK or F_WRLCK
	Start int64 `json:"start"` // bytes from the start of the file
	Len   int64 `json:"len"`   // bytes; 0 is to the end of the file and beyond
}

// span is a locked range; end is its last byte.
type span struct {
	typ        int16
	start, end int64
}

// toEnd is the last byte of a lock without an end (OFFSET_MAX in the kernel).
const toEnd = math.MaxInt64

func (s span) lock() Lock {
	l := Lock{Type: s.typ, Start: s.start}
	if s.end != toEnd {
		l.Len = s.end - s.start + 1
	}
	return l
}

func (s span) flock() unix.Flock_t {
	l := s.lock()
	return unix.Flock_t{Type: s.typ, Whence: unix.SEEK_SET, Start: l.Start, Len: l.Len}
}

func spanOf(lk *fuse.FileLock) span {
	return span{typ: int16(lk.Typ), start: int64(lk.Start), end: int64(min(lk.End, toEnd))}
}

func spanOfFlock(l *unix.Flock_t) span {
	s := span{typ: l.Type, start: l.Start, end: toEnd}
	if l.Len != 0 {
		s.end = l.Start + l.Len - 1
	}
	return s
}

func (s span) overlaps(o span) bool { return s.start <= o.end && o.start <= s.end }

// withSpan gives the locks that one owner has after it set s: s replaces what
// it had there, parts are split off, and equal neighbours become one
// (fcntl(2)). An unlock only takes away.
func withSpan(have []span, s span) []span {
	out := make([]span, 0, len(have)+2)
	for _, h := range have {
		if !h.overlaps(s) {
			out = append(out, h)
			continue
		}
		if h.start < s.start {
			out = append(out, span{h.typ, h.start, s.start - 1})
		}
		if h.end > s.end {
			out = append(out, span{h.typ, s.end + 1, h.end})
		}
	}
	if s.typ == unix.F_UNLCK {
		return out
	}
	rest := out[:0]
	for _, h := range out {
		switch {
		case h.typ == s.typ && h.end != toEnd && h.end+1 == s.start:
			s.start = h.start
		case h.typ == s.typ && s.end != toEnd && s.end+1 == h.start:
			s.end = h.end
		default:
			rest = append(rest, h)
		}
	}
	return append(rest, s)
}
