package fusefs_test

import (
	"fmt"
	"hash/crc32"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Memory maps. They are read and written by write(2) and read(2) of a pipe, so
// that a page that is not there is EFAULT and not a signal.

var _ = register(
	op{
		name: "mmap", weight: 20, fd: true,
		args: func(t *rapid.T, c *call) {
			c.FD, c.To = drawSlot(t), below(t, mapSlots)
			c.Mode = pick(t, []uint32{unix.PROT_READ | unix.PROT_WRITE, unix.PROT_READ}...)
			c.Flags = pick(t, unix.MAP_SHARED, unix.MAP_PRIVATE)
			c.Off = pick(t, []int64{0, 4096, 65536}...)
			c.Len = pick(t, []int64{4096, 16384, 5000}...)
		},
		run: func(p *process, side int, c call) string {
			b, err := unix.Mmap(p.fds[side][c.FD], c.Off, int(c.Len), int(c.Mode), c.Flags)
			if err != nil {
				return result(err)
			}
			p.unmap(side, c.To)
			p.maps[side][c.To] = b
			return "ok"
		},
		show: func(c call) string {
			return fmt.Sprintf("map%d = mmap(fd%d, %s, %s, %d bytes, at %d)", c.To, c.FD, named(c.Flags, []string{"MAP_SHARED", "MAP_PRIVATE"}, []int{1, 2}),
				named(int(c.Mode), []string{"PROT_READ", "PROT_WRITE"}, []int{1, 2}), c.Len, c.Off)
		},
	},
	op{
		name: "mread", weight: 20,
		args: func(t *rapid.T, c *call) { drawPart(t, c) },
		run: func(p *process, side int, c call) string {
			part := p.part(side, c)
			n, err := unix.Write(p.pipe[1], part)
			if err != nil {
				return result(err)
			}
			b := make([]byte, n)
			if n > 0 {
				_, err = unix.Read(p.pipe[0], b)
			}
			return fmt.Sprintf("%d crc %08x %s", n, crc32.ChecksumIEEE(b), result(err))
		},
		show: func(c call) string { return fmt.Sprintf("read %d bytes at %d of map%d", c.Len, c.Off, c.To) },
	},
	op{
		name: "mwrite", weight: 20,
		args: func(t *rapid.T, c *call) { drawPart(t, c); c.Seed = drawSeed(t) },
		run: func(p *process, side int, c call) string {
			part := p.part(side, c)
			if len(part) == 0 {
				return "nothing"
			}
			if _, err := unix.Write(p.pipe[1], data(int64(len(part)), c.Seed)); err != nil {
				return result(err)
			}
			n, err := unix.Read(p.pipe[0], part)
			p.drain()
			return number(int64(n), err)
		},
		show: func(c call) string { return fmt.Sprintf("write %d bytes at %d of map%d", c.Len, c.Off, c.To) },
	},
	op{
		name: "msync", weight: 6,
		args: func(t *rapid.T, c *call) {
			drawPart(t, c)
			c.Flags = pick(t, unix.MS_SYNC, unix.MS_ASYNC, unix.MS_SYNC|unix.MS_INVALIDATE)
		},
		run: func(p *process, side int, c call) string {
			if p.maps[side][c.To] == nil {
				return "no map"
			}
			return result(unix.Msync(p.maps[side][c.To], c.Flags))
		},
		show: func(c call) string { return fmt.Sprintf("msync(map%d, %d)", c.To, c.Flags) },
	},
	op{
		name: "munmap", weight: 8,
		args: func(t *rapid.T, c *call) { c.To = below(t, mapSlots) },
		run:  func(p *process, side int, c call) string { return p.unmap(side, c.To) },
		show: func(c call) string { return fmt.Sprintf("munmap(map%d)", c.To) },
	},
)

func drawPart(t *rapid.T, c *call) {
	c.To = below(t, mapSlots)
	c.Off, c.Len = int64(below(t, 16000)), pick(t, []int64{10, 4096, 8000, 1}...)
}

// part is the part of a map that a call is about.
func (p *process) part(side int, c call) []byte {
	m := p.maps[side][c.To]
	from := min(c.Off, int64(len(m)))
	return m[from:min(from+c.Len, int64(len(m)))]
}

func (p *process) unmap(side, slot int) string {
	m := p.maps[side][slot]
	p.maps[side][slot] = nil
	if m == nil {
		return "no map"
	}
	return result(unix.Munmap(m))
}

// writeBack brings what was changed through maps to the files.
func (p *process) writeBack(side int) {
	for _, m := range p.maps[side] {
		if m != nil {
			_ = unix.Msync(m, unix.MS_SYNC) // the result is that of the call msync
		}
	}
}
