// Command holder is a target that does what it is told: it reads commands from
// standard input, makes the system call that each stands for, and prints what
// came of it, so that a test sees faults exactly as a program does.
//
//	open NAME PATH FLAG,…     close NAME          dup NAME NEW
//	read NAME LEN             pread NAME OFF LEN  write NAME TEXT   pwrite NAME OFF TEXT
//	lseek NAME OFF            fsync NAME          fdatasync NAME    ftruncate NAME LEN
//	readdir NAME              flock NAME          trylock PATH      setlk NAME START LEN
//	mmap MAP NAME LEN KIND    peek MAP OFF LEN    poke MAP OFF TEXT msync MAP   (KIND: shared, private)
//	stat PATH                 mkdir PATH          unlink PATH       rename OLD NEW
//	cat PATH                  chdir PATH          getcwd            fdinfo NAME
//	mount TYPE PATH           umount PATH (lazily)
//	owner PATH (uid, gid, permissions)            chown PATH UID GID
//	behind NAME OFF LEN       result            (a pread in a thread of its own, and what came of it)
//	busy PATH THREADS         idle              (threads that read and write a file all the time, until idle; pipes that are full)
//	grab PATH once|again KIND grabbed           (a thread that tries to lock the whole file all the time, opened anew each time or not, KIND: read, write)
//	rdlk NAME START LEN       waitlk NAME START LEN                      unlk NAME
//	apart NAME START LEN      together          (a thread with a copy of the descriptors in a table of its own, which locks, and its end)
//	watch NAME PATH           events NAME         poll NAME FILE    ready NAME        (inotify, epoll; these make NAME)
//	lease NAME                leased NAME         unlease NAME      (F_SETLEASE for reads, F_GETLEASE)
//	fill PATH                 (writes until it is told why not)         append NAME LEN   free PATH  (blocks)
//	eat MIB                   (so much memory, which it never gives back)
//	spin PATH COUNT OP        (COUNT times OP, which is read or fsync; prints how often each errno came)
//
// The answer is one line: "ok VALUE" or the name of an errno.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	files = map[string]int{}
	maps  = map[string][]byte{}
)

// outcome is what a call in another thread returned.
type outcome struct {
	value string
	err   error
}

var behind = make(chan outcome, 1)

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<20), 1<<20)
	for in.Scan() {
		v, err := run(strings.Fields(in.Text()))
		var e syscall.Errno
		switch {
		case err == nil:
			fmt.Println("ok", v)
		case errors.As(err, &e):
			fmt.Println(unix.ErrnoName(e))
		default:
			fmt.Println("bad:", err)
		}
	}
}

var flags = map[string]int{
	"rdonly": unix.O_RDONLY, "wronly": unix.O_WRONLY, "rdwr": unix.O_RDWR, "creat": unix.O_CREAT, "append": unix.O_APPEND,
	"cloexec": unix.O_CLOEXEC, "direct": unix.O_DIRECT, "path": unix.O_PATH, "sync": unix.O_SYNC, "noatime": unix.O_NOATIME,
	"trunc": unix.O_TRUNC, "excl": unix.O_EXCL, "directory": unix.O_DIRECTORY, "nonblock": unix.O_NONBLOCK, "tmpfile": unix.O_TMPFILE,
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func run(f []string) (any, error) {
	if len(f) == 0 {
		return "", errors.New("no command")
	}
	f = append(f, "", "", "", "")
	fd := files[f[1]]
	switch f[0] {
	case "open":
		how := 0
		for _, n := range strings.Split(f[3], ",") {
			how |= flags[n]
		}
		n, err := unix.Open(f[2], how, 0o644)
		if err == nil {
			files[f[1]] = n
		}
		return n, err
	case "close":
		delete(files, f[1])
		return "", unix.Close(fd)
	case "exec": // another program in this process
		return "", unix.Exec(f[1], []string{f[1]}, os.Environ())
	case "dup":
		n, err := unix.Dup(fd)
		files[f[2]] = n
		return n, err
	case "read":
		b := make([]byte, number(f[2]))
		n, err := unix.Read(fd, b)
		return text(b, n), err
	case "pread":
		b := make([]byte, number(f[3]))
		n, err := unix.Pread(fd, b, int64(number(f[2])))
		return text(b, n), err
	case "write":
		return unix.Write(fd, []byte(f[2]))
	case "pwrite":
		return unix.Pwrite(fd, []byte(f[3]), int64(number(f[2])))
	case "lseek":
		whence := unix.SEEK_SET
		if f[2] == "cur" {
			f[2], whence = "0", unix.SEEK_CUR
		}
		return unix.Seek(fd, int64(number(f[2])), whence)
	case "fsync":
		return "", unix.Fsync(fd)
	case "fdatasync":
		return "", unix.Fdatasync(fd)
	case "ftruncate":
		return "", unix.Ftruncate(fd, int64(number(f[2])))
	case "readdir":
		b := make([]byte, 256)
		n, err := unix.Getdents(fd, b)
		if err != nil {
			return nil, err
		}
		_, _, names := unix.ParseDirent(b[:n], -1, nil)
		return strings.Join(names, ","), nil
	case "flock":
		return "", unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	case "trylock":
		n, err := unix.Open(f[1], unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer func() { _ = unix.Close(n) }()
		return "", unix.Flock(n, unix.LOCK_EX|unix.LOCK_NB)
	case "setlk":
		return "", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(number(f[2])), Len: int64(number(f[3]))})
	case "mmap":
		kind := unix.MAP_SHARED
		if f[4] == "private" {
			kind = unix.MAP_PRIVATE
		}
		m, err := unix.Mmap(files[f[2]], 0, number(f[3]), unix.PROT_READ|unix.PROT_WRITE, kind)
		maps[f[1]] = m
		return "", err
	case "peek":
		off := number(f[2])
		b := maps[f[1]][off : off+number(f[3])]
		return text(append([]byte{}, b...), len(b)), nil
	case "poke":
		return copy(maps[f[1]][number(f[2]):], f[3]), nil
	case "msync":
		return "", unix.Msync(maps[f[1]], unix.MS_SYNC)
	case "stat":
		var s unix.Stat_t
		err := unix.Stat(f[1], &s)
		return s.Size, err
	case "owner":
		var s unix.Stat_t
		err := unix.Stat(f[1], &s)
		return fmt.Sprintf("%d %d %o", s.Uid, s.Gid, s.Mode&0o7777), err
	case "chown":
		return "", unix.Chown(f[1], number(f[2]), number(f[3]))
	case "mount":
		return "", unix.Mount(f[1], f[2], f[1], 0, "")
	case "umount":
		return "", unix.Unmount(f[1], unix.MNT_DETACH)
	case "mkdir":
		return "", unix.Mkdir(f[1], 0o755)
	case "unlink":
		return "", unix.Unlink(f[1])
	case "rename":
		return "", unix.Rename(f[1], f[2])
	case "cat":
		b, err := os.ReadFile(f[1])
		return text(b, len(b)), err
	case "chdir":
		return "", unix.Chdir(f[1])
	case "getcwd":
		return os.Getwd()
	case "fdinfo":
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		return strings.ReplaceAll(string(b), "\n", ";"), err
	case "behind":
		b := make([]byte, number(f[3]))
		go func() {
			n, err := unix.Pread(fd, b, int64(number(f[2])))
			behind <- outcome{text(b, n), err}
		}()
		return "", nil
	case "result":
		r := <-behind
		return r.value, r.err
	case "grab":
		return "", contender.start(f[1], f[2] == "again", f[3])
	case "grabbed":
		return contender.stop()
	case "waitlk":
		return "", unix.FcntlFlock(uintptr(fd), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_RDLCK, Start: int64(number(f[2])), Len: int64(number(f[3]))})
	case "unlk":
		return "", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
	case "rdlk":
		return "", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: int64(number(f[2])), Len: int64(number(f[3]))})
	case "apart":
		return "", apart.start(fd, unix.Flock_t{Type: unix.F_WRLCK, Start: int64(number(f[2])), Len: int64(number(f[3]))})
	case "together":
		return "", apart.stop()
	case "busy":
		return "", crowd.start(f[1], number(f[2]))
	case "idle":
		return crowd.stop()
	case "watch":
		return watch(f[1], f[2])
	case "events":
		return events(fd)
	case "poll":
		return "", poll(f[1], files[f[2]])
	case "ready":
		return ready(fd)
	case "lease":
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
		return "", err
	case "leased":
		return unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
	case "unlease":
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
		return "", err
	case "append":
		return unix.Write(fd, make([]byte, number(f[2])))
	case "fill":
		return "", fill(f[1])
	case "free":
		var s unix.Statfs_t
		err := unix.Statfs(f[1], &s)
		return s.Bavail, err
	case "eat":
		m, err := unix.Mmap(-1, 0, number(f[1])<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		return len(m), err
	case "spin":
		return spin(f[1], number(f[2]), f[3])
	}
	return nil, fmt.Errorf("unknown command %q", f[0])
}

func text(b []byte, n int) string {
	if n < 0 {
		n = 0
	}
	return strings.TrimRight(string(b[:n]), "\x00")
}

// spin makes many calls and counts their results: {"ok":900,"EIO":100}.
func spin(path string, count int, op string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	seen := map[string]int{}
	b := make([]byte, 8)
	for range count {
		if op == "read" {
			_, err = unix.Pread(fd, b, 0)
		} else {
			err = unix.Fsync(fd)
		}
		var e syscall.Errno
		if errors.As(err, &e) {
			seen[unix.ErrnoName(e)]++
		} else {
			seen["ok"]++
		}
	}
	names := make([]string, 0, len(seen))
	for n := range seen {
		names = append(names, n)
	}
	sort.Strings(names)
	out, err := json.Marshal(seen)
	return string(out), err
}
