package fusefs_test

import (
	"bytes"
	"crypto/sha256"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// O_DIRECT is refused where the file system below refuses it. FUSE does not say how
// the program's memory is aligned, so that a buffer that is not is taken.
func TestSameDirectIO(t *testing.T) {
	bothWays(t, func(s *side) {
		s.make("f", string(pattern2(70000, 5)), 0o644)
		fd := s.open("f", unix.O_RDWR|unix.O_DIRECT, 0)
		mem := aligned(1 << 21)
		for _, off := range []int64{0, 1, 100, 512, 4096, 65536, 69632, 70000, 70144, 73728, 1 << 40} {
			for _, n := range []int{0, 1, 100, 512, 1024, 4096, 8192, 65536, 1 << 20, 1<<20 + 512, 1<<20 + 100} {
				got, err := unix.Pread(fd, mem[:n], off)
				s.say("pread of %d at %d: %d %.4x %s", n, off, got, sha256.Sum256(mem[:max(got, 0)]), errnoText(err))
			}
		}
		for i := range mem {
			mem[i] = byte(i >> 9)
		}
		for _, off := range []int64{0, 1, 100, 512, 4096, 65536} {
			for _, n := range []int{0, 1, 100, 512, 4096, 8192, 1 << 20, 1<<20 + 512} {
				got, err := unix.Pwrite(fd, mem[:n], off)
				s.say("pwrite of %d at %d: %d %s", n, off, got, errnoText(err))
			}
		}
		s.sum("f")
		direct := s.open("g", unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0o644)
		n, err := unix.Pwrite(direct, mem[:4096], 0)
		s.say("a new file: %d %s", n, errnoText(err))
		m, err := unix.Mmap(direct, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(s, err)
		must(s, poke(m[5:], 'x'))
		_ = s.did("msync", unix.Msync(m, unix.MS_SYNC))
		must(s, unix.Munmap(m))
		fl, err := unix.FcntlInt(uintptr(direct), unix.F_GETFL, 0)
		s.say("flags %x %s", fl, errnoText(err))
		s.sum("g")
	})
}

// The flag comes and goes by fcntl(2), which FUSE tells with each request. It does not
// reach files that are passed through: the kernel has opened the one below with the
// flags of the open (backing_file_open and BACKING_IOCB_MASK in fs/backing-file.c).
func TestSameDirectIOByFcntl(t *testing.T) {
	b := over(t, setup{direct: true})
	plain := t.TempDir()
	bothIn(t, &side{TB: t, dir: plain, under: plain, plain: true}, &side{TB: t, dir: b.mnt, under: b.back}, func(s *side) {
		mem := aligned(4096)
		s.make("f", string(pattern2(70000, 5)), 0o644)
		plain := s.open("f", unix.O_RDWR, 0)
		for _, flags := range []int{unix.O_DIRECT, 0, unix.O_DIRECT | unix.O_APPEND, unix.O_APPEND} {
			_, err := unix.FcntlInt(uintptr(plain), unix.F_SETFL, flags)
			s.say("F_SETFL %x: %s", flags, errnoText(err))
			for _, n := range []int{100, 4096} {
				got, err := unix.Pread(plain, mem[:n], 0)
				s.say("pread of %d: %d %s", n, got, errnoText(err))
				got, err = unix.Pwrite(plain, mem[:n], 4096)
				s.say("pwrite of %d: %d %s", n, got, errnoText(err))
			}
			s.sum("f")
		}
	})
}

// The kernel cuts a large transfer where the pages of the program's buffer say so; the parts are not refused.
func TestDirectIOInParts(t *testing.T) {
	b := over(t, setup{direct: true})
	fd := b.open("f", unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT)
	const size = 3 << 20
	data := pattern2(size, 7)
	buf := aligned(size + 4096)[16 : 16+size]
	copy(buf, data)
	for off := 0; off < size; {
		n, err := unix.Pwrite(fd, buf[off:], int64(off))
		if err != nil || n == 0 {
			t.Fatalf("write at %d: %d %v", off, n, err)
		}
		off += n
	}
	clear(buf)
	for off := 0; off < size; {
		n, err := unix.Pread(fd, buf[off:], int64(off))
		if err != nil || n == 0 {
			t.Fatalf("read at %d: %d %v", off, n, err)
		}
		off += n
	}
	if !bytes.Equal(buf, data) {
		t.Error("read back other data")
	}
	if _, err := unix.Pread(fd, buf[:512], 100); err != unix.EINVAL {
		t.Errorf("an unaligned read afterwards: %v", err)
	}
}

// A file system without O_DIRECT refuses it on the layer, too.
func TestDirectIOThatIsNotThere(t *testing.T) {
	back := t.TempDir()
	must(t, unix.Mount("ramfs", back, "ramfs", 0, ""))
	must(t, os.WriteFile(back+"/f", nil, 0o644))
	t.Cleanup(func() { _ = unix.Unmount(back, unix.MNT_DETACH) })
	b := over(t, setup{back: back})
	for _, dir := range []string{back, b.mnt} {
		if err := openClose(dir+"/f", unix.O_RDONLY|unix.O_DIRECT, 0); err != unix.EINVAL {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
