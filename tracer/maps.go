package tracer

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// stagedMap is a new map, made beside the old one, with the same contents.
type stagedMap struct {
	place *place
	at    uint64
}

// stageMaps makes the new maps in the staging part of the scratch region, and
// copies the modified pages of private ones.
func (j *job) stageMaps(which pick) error {
	j.maps = nil
	if j.mem == nil || len(j.mem.maps) == 0 {
		return nil
	}
	at := j.r.stage
	for part := range slices.Chunk(j.mem.maps, maxRights) {
		var files []int
		for _, m := range part {
			if f := which(m.item).fd; !slices.Contains(files, f) { // one new file for all maps of one old
				files = append(files, f)
			}
		}
		temps, err := j.r.temps(files)
		if err != nil {
			return err
		}
		b := j.r.batch()
		for _, m := range part {
			n := m.line.end - m.line.start
			fd := temps[slices.Index(files, which(m.item).fd)]
			b.add(unix.SYS_MMAP, at, n, uint64(m.line.prot), m.flags(), uint64(fd), m.line.offset)
			j.maps = append(j.maps, stagedMap{m, at})
			at += n
		}
		b.closeTemps(temps)
		if err := b.run(); err != nil {
			return fmt.Errorf("map the new files: %w", err)
		}
	}
	for _, m := range j.maps {
		if !m.place.line.shared {
			if err := j.copyPages(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// flags are the arguments with which the map was made.
func (m *place) flags() uint64 {
	flags := uint64(unix.MAP_FIXED | unix.MAP_PRIVATE)
	if m.line.shared {
		flags = unix.MAP_FIXED | unix.MAP_SHARED
	}
	if slices.Contains(m.vm, "nr") {
		flags |= unix.MAP_NORESERVE
	}
	return flags
}

// copyPages copies the pages of a private map that are its own. /proc/PID/mem
// writes also where the map itself cannot be written.
func (j *job) copyPages(m stagedMap) error {
	own, err := ownPages(j.t.tid, m.place.line)
	if err != nil {
		return fmt.Errorf("modified pages of %s: %w", &m.place.obj, err)
	}
	const most = 1 << 20
	buf := make([]byte, 0, most)
	for _, s := range own {
		for a := s.start; a < s.end; {
			n := min(s.end-a, most)
			buf = buf[:n]
			if _, err := j.p.mem.ReadAt(buf, int64(a)); err != nil {
				return j.r.memError(fmt.Sprintf("read modified page %#x of %s: ", a, &m.place.obj), err)
			}
			if _, err := j.p.mem.WriteAt(buf, int64(m.at+a-m.place.line.start)); err != nil {
				return j.r.memError(fmt.Sprintf("write modified page %#x of %s: ", a, &m.place.obj), err)
			}
			a += n
		}
	}
	return nil
}

// ownPages lists the runs of pages of a private file map that are no longer the
// file's, by /proc/PID/pagemap: present but not of a file, or swapped out.
func ownPages(tid int, l mapLine) (r []span, err error) {
	f, err := os.Open(procPath(tid, "pagemap"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	const present, swapped, ofFile = 1 << 63, 1 << 62, 1 << 61
	buf := make([]byte, 8*8192)
	for a := l.start; a < l.end; {
		n := min((l.end-a)/pageSize, uint64(len(buf)/8))
		if _, err := f.ReadAt(buf[:8*n], int64(a/pageSize*8)); err != nil {
			return nil, err
		}
		for i := range n {
			v := binary.LittleEndian.Uint64(buf[8*i:])
			if v&swapped == 0 && (v&present == 0 || v&ofFile != 0) {
				continue
			}
			p := a + i*pageSize
			if k := len(r) - 1; k >= 0 && r[k].end == p {
				r[k].end = p + pageSize
			} else {
				r = append(r, span{p, p + pageSize})
			}
		}
		a += n * pageSize
	}
	return r, nil
}

// mapAdvice gives a map again what madvise(2) had set on the old one, by VmFlags.
var mapAdvice = []struct {
	flag   string
	advice uint64
}{
	{"sr", unix.MADV_SEQUENTIAL}, {"rr", unix.MADV_RANDOM}, {"dc", unix.MADV_DONTFORK},
	{"dd", unix.MADV_DONTDUMP}, {"hg", unix.MADV_HUGEPAGE}, {"nh", unix.MADV_NOHUGEPAGE},
}

// moveMaps adds the calls that put the staged maps in the place of the old ones:
// mremap(2) takes the old one away in the same step.
func (j *job) moveMaps(b *batch) {
	for _, m := range j.maps {
		start, n := m.place.line.start, m.place.line.end-m.place.line.start
		for _, a := range mapAdvice {
			if slices.Contains(m.place.vm, a.flag) {
				b.add(unix.SYS_MADVISE, m.at, n, a.advice).mayFail = true // a hint, or a kernel without huge pages
			}
		}
		b.add(unix.SYS_MREMAP, m.at, n, n, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, start)
		if slices.Contains(m.place.vm, "lo") {
			// The pages are brought in by a call of its own: it sets what is wanted and then
			// fails where there is none to bring in, in a map that may not be read or beyond
			// the end of the file (do_mlock in mm/mlock.c).
			b.add(unix.SYS_MLOCK2, start, n, unix.MLOCK_ONFAULT)
			if !slices.Contains(m.place.vm, "lf") {
				b.add(unix.SYS_MLOCK2, start, n, 0).mayFail = true
			}
		}
	}
}
