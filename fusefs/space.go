package fusefs

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// The space of nospace and quota rules. What a file takes is the bytes of its
// allocated blocks below its end: growing by one byte takes one byte, writing
// into a hole takes the blocks it fills, writing over what is there takes
// nothing. It is a function of the file alone, so that whatever frees blocks
// gives back what taking them took. Blocks come from FIEMAP, which tells of
// blocks whose allocation is delayed (ext4, xfs, btrfs) and of those that are
// preallocated; st_blocks would count the file system's own blocks and what it
// allocates on speculation (xfs) as well.

// takes are the operations that may need blocks, makes those that make an
// object: it takes no space, but cannot be made when none is left.
var (
	takes = ops(policy.OpWrite, policy.OpMmapWrite, policy.OpFallocate, policy.OpCopyFileRange)
	makes = ops(policy.OpCreate, policy.OpMkdir, policy.OpMknod, policy.OpSymlink, policy.OpLink, policy.OpTmpfile, policy.OpSetxattr)
)

// budget is the space that is left under one rule.
type budget struct {
	limit int64
	used  *atomic.Int64 // below 0 when more was freed than taken
}

func (b *budget) left() int64 { return b.limit - b.used.Load() }

// take takes so many bytes, or what is left, and says how many it got.
func (b *budget) take(want int64) int64 {
	for {
		used := b.used.Load()
		got := min(want, max(b.limit-used, 0))
		if got == 0 || b.used.CompareAndSwap(used, used+got) {
			return got
		}
	}
}

// charge takes bytes whether they are there or not, or gives them back.
func (b *budget) charge(n int64) { b.used.Add(n) }

// spaceLocks make the look at a file's blocks and the change of them one step. A file has one of them by its key.
type spaceLocks [64]sync.Mutex

func (t *spaceLocks) of(k key) *sync.Mutex {
	h := k.ino ^ k.ino>>17 ^ uint64(k.major)<<7 ^ uint64(k.minor)
	return &t[h%uint64(len(t))]
}

// extent is a run of allocated blocks, bytes.
type extent struct{ from, to int64 }

// blockMap is what is allocated in a part of a file.
type blockMap struct {
	size  int64 // of the file
	block int64
	have  []extent
}

// blocksOf looks at the blocks of a file between two places.
func blocksOf(fd int, st *unix.Statx_t, from, to int64) (*blockMap, error) {
	m := &blockMap{size: int64(st.Size), block: int64(st.Blksize)}
	if m.block <= 0 || m.block > 64<<10 { // NFS and its like tell their transfer size
		m.block = 4096
	}
	if from = m.down(from); from >= to {
		return m, nil
	}
	err := m.fiemap(fd, from, m.up(to))
	if err == unix.EOPNOTSUPP || err == unix.ENOTTY || err == unix.EINVAL {
		m.have = nil
		err = m.seek(fd, from, m.up(to))
	}
	return m, err
}

func (m *blockMap) down(at int64) int64 { return at - at%m.block }
func (m *blockMap) up(at int64) int64   { return m.down(at + m.block - 1) }

// FIEMAP of include/uapi/linux/fiemap.h.
const (
	fsIocFiemap      = 0xc020660b
	fiemapExtentLast = 1
	fiemapBatch      = 32
)

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type fiemapRequest struct {
	start, length uint64
	flags, mapped uint32
	count, _      uint32
	extents       [fiemapBatch]fiemapExtent
}

func (m *blockMap) fiemap(fd int, from, to int64) error {
	for from < to {
		r := fiemapRequest{start: uint64(from), length: uint64(to - from), count: fiemapBatch}
		err := retry(func() error {
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocFiemap, uintptr(unsafe.Pointer(&r))); e != 0 {
				return e
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, e := range r.extents[:min(r.mapped, fiemapBatch)] {
			m.add(int64(e.logical), m.up(int64(e.logical+e.length)))
			from = int64(e.logical + e.length)
			if e.flags&fiemapExtentLast != 0 {
				return nil
			}
		}
		if r.mapped < fiemapBatch {
			return nil
		}
	}
	return nil
}

// seek is for file systems without FIEMAP, such as tmpfs: what is preallocated
// there counts when it is written.
func (m *blockMap) seek(fd int, from, to int64) error {
	for to = min(to, m.size); from < to; {
		data, err := unix.Seek(fd, from, unix.SEEK_DATA)
		if err == unix.ENXIO || err == nil && data >= to {
			return nil
		}
		if err != nil {
			return err
		}
		if from, err = unix.Seek(fd, data, unix.SEEK_HOLE); err != nil {
			return err
		}
		m.add(m.down(data), m.up(from))
	}
	return nil
}

func (m *blockMap) add(from, to int64) {
	if last := len(m.have) - 1; last >= 0 && m.have[last].to >= from {
		m.have[last].to = max(m.have[last].to, to)
		return
	}
	m.have = append(m.have, extent{from, to})
}

// within is how many bytes between two places are allocated.
func (m *blockMap) within(from, to int64) int64 {
	var n int64
	for _, e := range m.have {
		n += max(min(e.to, to)-max(e.from, from), 0)
	}
	return n
}

// need is how much more the file takes once [at, at+n) is written.
func (m *blockMap) need(at, n int64) int64 {
	if n <= 0 {
		return 0
	}
	end := at + n
	size := max(m.size, end)
	from, to := m.down(at), min(m.up(end), size)
	return to - from - m.within(from, to) + m.within(m.size, size)
}

// fit is the longest prefix of [at, at+n) that needs no more than so much.
func (m *blockMap) fit(at, n, space int64) int64 {
	low, high := int64(0), n // need grows with the length
	for low < high {
		mid := low + (high-low+1)/2
		if m.need(at, mid) <= space {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return low
}

// taken is how much the file behind a descriptor takes between two places; to
// below 0 means up to its end.
func taken(fd int, from, to int64) (int64, error) {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		return 0, err
	}
	if to < 0 || to > int64(st.Size) {
		to = int64(st.Size)
	}
	m, err := blocksOf(fd, &st, from, to)
	if err != nil {
		return 0, err
	}
	return m.within(from, to), nil
}
