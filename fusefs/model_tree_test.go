package fusefs_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path"
	"sort"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What can be seen of files: attributes, contents, holes, lists of names.

var _ = register(op{
	name: "tree", weight: 12,
	run:  func(p *process, side int, _ call) string { return p.tree(side) },
	show: func(call) string { return "look at everything" },
})

// look is what can be seen of what a call was about.
func (p *process) look(o op, side int, c call) string {
	var out string
	if o.fd {
		out += "; fd: " + p.stat(p.fds[side][c.FD], "")
	}
	if o.to {
		out += "; to: " + p.stat(p.fds[side][c.To], "")
	}
	if o.path && c.Path != "" {
		out += "; " + quote(c.Path) + ": " + p.stat(p.roots[side], c.Path)
	}
	if o.into {
		out += "; " + quote(c.Into) + ": " + p.stat(p.roots[side], c.Into)
	}
	return out
}

// stat shows the attributes of a name, or of an open file. FUSE has no
// stx_attributes (fuse_do_statx of Linux 6.18); the ioctl FS_IOC_GETFLAGS has them.
func (p *process) stat(dir int, name string) string {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return result(err)
	}
	s := fmt.Sprintf("%#o %d:%d nlink %d size %d", st.Mode, st.Uid, st.Gid, st.Nlink, st.Size)
	if st.Mode&unix.S_IFMT == unix.S_IFCHR || st.Mode&unix.S_IFMT == unix.S_IFBLK {
		s += fmt.Sprintf(" rdev %d:%d", st.Rdev_major, st.Rdev_minor)
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		s += " no btime"
	}
	if !p.after.Unseen {
		s += " a " + p.moment(st.Atime)
	}
	return s + fmt.Sprintf(" blksize %d m %s c %s b %s", st.Blksize, p.moment(st.Mtime), p.moment(st.Ctime), p.moment(st.Btime))
}

// moment is a time that a program has set, or "now" for one in its lifetime.
func (p *process) moment(t unix.StatxTimestamp) string {
	switch {
	case t.Sec < 1_000_000_000:
		return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec)
	case t.Sec < p.began.Unix()-1: // the kernel's coarse clock may be behind
		return "before the program began"
	case t.Sec > p.began.Unix()+3600:
		return "in the future"
	}
	return "now"
}

// tree shows everything below the root, as root sees it.
func (p *process) tree(side int) string {
	uid, gid, mask := unix.Geteuid(), unix.Getegid(), unix.Umask(0)
	defer func() {
		unix.Umask(mask)
		_ = p.become(uid, gid)
	}()
	if err := p.become(0, 0); err != nil {
		return err.Error()
	}
	p.writeBack(side)
	var b strings.Builder
	p.walk(&b, side, ".")
	for slot, fd := range p.fds[side] {
		if fd >= 0 {
			pos, err := unix.Seek(fd, 0, unix.SEEK_CUR)
			if p.isDir(side, slot) {
				pos = 0
			}
			fmt.Fprintf(&b, "fd%d %s at %s %s\n", slot, p.stat(fd, ""), number(pos, err), contents(fd, !p.after.Filled))
		}
	}
	return b.String()
}

func (p *process) walk(b *strings.Builder, side int, name string) {
	root := p.roots[side]
	show := quote(name)
	fmt.Fprintf(b, "%s %s\n", show, p.stat(root, name))
	if list := attrNames(p.name(side, name)); list != `[""]` {
		fmt.Fprintf(b, "%s attributes %s\n", show, list)
		for _, key := range attrKeys {
			v := make([]byte, 1<<16)
			if n, err := unix.Lgetxattr(p.name(side, name), key, v); err == nil {
				fmt.Fprintf(b, "%s %s = %x\n", show, key, v[:n])
			}
		}
	}
	if side == 0 {
		b.WriteString(p.sameBelow(name))
	}
	var st unix.Stat_t
	if err := unix.Fstatat(root, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target := make([]byte, 300)
		n, err := unix.Readlinkat(root, name, target)
		fmt.Fprintf(b, "%s -> %s %s\n", show, quote(string(target[:max(n, 0)])), result(err))
	case unix.S_IFREG:
		fd, err := unix.Openat(root, name, unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
		if err != nil {
			fmt.Fprintf(b, "%s open: %s\n", show, result(err))
			return
		}
		fmt.Fprintf(b, "%s %s\n", show, contents(fd, !p.after.Filled))
		_ = unix.Close(fd)
	case unix.S_IFDIR:
		names, err := list(root, name)
		fmt.Fprintf(b, "%s holds %q %s\n", show, names, result(err))
		for _, n := range names {
			if n != "." && n != ".." {
				p.walk(b, side, path.Join(name, n))
			}
		}
	}
}

// sameBelow says where the layer shows other attributes than the file below has.
func (p *process) sameBelow(name string) string {
	var layer, below unix.Stat_t
	if unix.Fstatat(p.roots[0], name, &layer, unix.AT_SYMLINK_NOFOLLOW) != nil || unix.Fstatat(p.roots[2], name, &below, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return "" // its absence is seen elsewhere
	}
	layer.Dev = below.Dev
	if layer == below {
		return ""
	}
	return fmt.Sprintf("%s is %+v, but below %+v\n", quote(name), layer, below)
}

func list(root int, name string) ([]string, error) {
	fd, err := unix.Openat(root, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var names []string
	buf := make([]byte, 8192)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n == 0 {
			sort.Strings(names)
			return names, err
		}
		for b := buf[:n]; len(b) > 0; b = b[binary.NativeEndian.Uint16(b[16:]):] {
			names = append(names, unix.ByteSliceToString(b[19:]))
		}
	}
}

// contents sums up what is in a file and where its holes are. Large files are
// nearly all hole: only their data is read.
func contents(fd int, holes bool) string {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return ""
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_DIRECT != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY || flags&unix.O_PATH != 0 {
		return "" // it cannot be read, or not everywhere
	}
	old, _ := unix.Seek(fd, 0, unix.SEEK_CUR)
	defer func() { _, _ = unix.Seek(fd, old, unix.SEEK_SET) }()
	sum := crc32.NewIEEE()
	var extents []string
	for at := int64(0); ; {
		from, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return "SEEK_DATA: " + result(err)
		}
		to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
		if err != nil {
			return "SEEK_HOLE: " + result(err)
		}
		extents = append(extents, fmt.Sprintf("%d-%d", from, to))
		for buf := make([]byte, 1<<16); from < to; {
			n, err := unix.Pread(fd, buf[:min(int64(len(buf)), to-from)], from)
			if err != nil || n == 0 {
				return fmt.Sprintf("read at %d: %d %s", from, n, result(err))
			}
			for i, v := range buf[:n] {
				if v != 0 { // zeros may as well be a hole
					_, _ = sum.Write(binary.LittleEndian.AppendUint64([]byte{v}, uint64(from)+uint64(i))) // never fails
				}
			}
			from += int64(n)
		}
		at = to
	}
	if !holes {
		return fmt.Sprintf("crc %08x", sum.Sum32())
	}
	return fmt.Sprintf("data %v crc %08x", extents, sum.Sum32())
}

func setGroups(gid int) error {
	groups := []uint32{uint32(gid), 2000}
	if gid != 1000 { // only that one is in a second group
		groups = groups[:1]
	}
	_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0)
	if e != 0 {
		return e
	}
	return nil
}
