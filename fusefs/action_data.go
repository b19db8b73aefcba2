package fusefs

import (
	"math/bits"
	"math/rand/v2"

	"github.com/faultgraft/faultgraft/policy"
)

// short gives how many bytes of a request of so many are transferred: from 1 to
// size less one.
func (c *change) short(size int) int {
	s, n := c.rule.IO.Short, int64(size)
	switch {
	case s.Random:
		n = 1 + rand.New(c.src).Int64N(n-1)
	case s.Share > 0:
		n = int64(float64(n) * s.Share)
	default:
		n = s.Bytes
	}
	return int(min(max(n, 1), int64(size-1)))
}

// corrupt changes data in place and notes where; at is the place of its first
// byte. Each place lies in an equal part of the data, so that no two overlap.
func (c *change) corrupt(data []byte, at int64) {
	f := c.rule.IO.Corrupt
	random := rand.New(c.src)
	places := min(int(f.Places), len(data))
	for i := range places {
		from, to := i*len(data)/places, (i+1)*len(data)/places
		start := from + random.IntN(to-from)
		end := min(start+1+random.IntN(int(f.Bytes)), to)
		spoil(data[start:end], f.Kind, random)
		c.event.Places = append(c.event.Places, Place{Offset: at + int64(start), Size: int64(end - start)})
	}
}

func spoil(b []byte, kind policy.CorruptKind, random *rand.Rand) {
	for i := range b {
		switch kind {
		case policy.Zero:
			b[i] = 0
		case policy.Random:
			b[i] += byte(1 + random.IntN(255)) // never what it was
		default:
			b[i] = bits.RotateLeft8(1, random.IntN(8)) ^ b[i]
		}
	}
}

// corruptLink changes the text of a symbolic link. It has no byte 0, at which the kernel would cut it (page_get_link in fs/namei.c), unless the rule asks for zeros.
func (c *change) corruptLink(text []byte) {
	was := string(text)
	c.corrupt(text, 0)
	if c.rule.IO.Corrupt.Kind == policy.Zero {
		return
	}
	for i := range text {
		if text[i] == 0 {
			text[i] = was[i] ^ 0x80
		}
	}
}

// answerWith finishes a read or readlink: it changes what was read and records it.
func (l *Layer) answerWith(c *change, data []byte, at int64) {
	switch c.event.Action {
	case ActionCorrupt:
		if c.event.Op == policy.OpReadlink {
			c.corruptLink(data)
		} else {
			c.corrupt(data, at)
		}
	case ActionShort:
		c.event.Bytes = int64(len(data))
	}
	l.record(c)
}
