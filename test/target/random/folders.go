package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Folders: positions in them, and the working directory.

// listing is an open folder with a position in it.
type listing struct {
	mu   sync.Mutex
	fd   int // used by system calls
	of   *os.File
	seen map[string]bool
	kept int64 // a position of before, 0 for none, and the first name after it
	next string
}

// readFolder reads a part of the folder "list".
func (w *worker) readFolder() {
	l := &w.p.listings[w.r.IntN(listings)]
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil || w.one(40) {
		w.openFolder(l)
	}
	w.note(nil, "read folder, %d entries were read", len(l.seen))
	var names []string
	var err error
	if l.of != nil {
		names, err = l.of.Readdirnames(1 + w.r.IntN(20)) // which reads ahead some 8 KiB
		if errors.Is(err, io.EOF) {
			err = nil
		}
	} else {
		names = w.readNames(l)
	}
	w.ok(err, "read folder")
	for _, n := range names {
		if k, err := strconv.Atoi(strings.TrimPrefix(n, "e")); err != nil || k < 0 || k >= listed || l.seen[n] {
			w.bad(err, "entry %s was read again, or is none", n)
		}
		l.seen[n] = true
	}
	if len(names) > 0 {
		return
	}
	if len(l.seen) != listed {
		w.bad(nil, "a folder has %d entries, not %d", len(l.seen), listed)
	}
	clear(l.seen)
	if l.of != nil {
		_, err = l.of.Seek(0, io.SeekStart)
	} else {
		_, err = unix.Seek(l.fd, 0, io.SeekStart)
	}
	w.ok(err, "lseek in a folder")
}

func (w *worker) openFolder(l *listing) {
	w.note(nil, "open folder")
	switch {
	case l.of != nil:
		w.ok(l.of.Close(), "close of a folder")
	case l.seen != nil:
		w.ok(unix.Close(l.fd), "close of a folder")
	}
	l.of, l.seen, l.kept = nil, map[string]bool{}, 0
	var err error
	if w.one(2) {
		l.of, err = os.Open("../list")
	} else {
		l.fd, err = openat(w.p.list, ".", unix.O_DIRECTORY|unix.O_CLOEXEC)
	}
	w.ok(err, "open of a folder")
}

// readNames reads some entries, and goes back to a position of before now and then.
func (w *worker) readNames(l *listing) []string {
	at := func() int64 {
		pos, err := unix.Seek(l.fd, 0, io.SeekCurrent)
		w.ok(err, "lseek in a folder")
		return pos
	}
	to := func(pos int64) {
		if got, err := unix.Seek(l.fd, pos, io.SeekStart); got != pos || err != nil {
			w.bad(err, "lseek in a folder to %d: %d", pos, got)
		}
	}
	read := func() (names []string) {
		n, err := unix.ReadDirent(l.fd, w.buf[:400])
		w.ok(err, "getdents64")
		_, _, names = unix.ParseDirent(w.buf[:n], -1, nil)
		return names
	}
	now := at()
	if l.kept != 0 && w.one(8) {
		w.note(nil, "read folder at %d, a position of before", l.kept)
		to(l.kept)
		if names := read(); len(names) == 0 || names[0] != l.next {
			w.bad(nil, "position %d leads to %v, not %s", l.kept, names, l.next)
		}
		to(now)
	}
	names := read()
	if now != 0 && len(names) > 0 && w.one(3) {
		l.kept, l.next = now, names[0]
	}
	return names
}

func (w *worker) changeDir() {
	p, to := w.p, w.r.IntN(folders)
	p.cwd.Lock()
	defer p.cwd.Unlock()
	w.note(nil, "chdir to d%d", to)
	var err error
	if w.one(2) {
		err = os.Chdir(fmt.Sprint("../d", to))
	} else {
		err = again(func() error { return unix.Fchdir(p.folders[to]) })
	}
	w.ok(err, "chdir")
	p.cwd.folder = to
}

func (w *worker) checkDir() {
	p := w.p
	p.cwd.RLock()
	defer p.cwd.RUnlock()
	w.note(nil, "getcwd")
	w.here(p.cwd.folder)
}

// here compares the working directory of this thread.
func (w *worker) here(folder int) {
	path, err := unix.Getwd()
	if err != nil || !strings.HasSuffix(path, fmt.Sprint("/d", folder)) || strings.HasPrefix(path, "(") {
		device := func(path string) uint64 {
			var st unix.Stat_t
			_ = unix.Stat(path, &st) // 0
			return st.Dev
		}
		w.bad(err, "getcwd: %s, not …/d%d; it is on device %#x, the folder on %#x", path, folder, device("."), device(fmt.Sprint("/proc/self/fd/", w.p.folders[folder])))
	}
	var st unix.Stat_t
	err = again(func() error { return unix.Stat(".", &st) })
	if err != nil || st.Ino != w.p.inodes[folder] {
		w.bad(err, "the working directory is inode %d, not %d", st.Ino, w.p.inodes[folder])
	}
}

// ownDirectories has a thread with a working directory, or a descriptor table, of its
// own for a while, as programs have that change namespaces. One at a time: code to exchange
// what it has needs a place of its own, of which a static program has two or so (docs/swap.md).
func (w *worker) ownDirectories() {
	if !w.p.apart.TryLock() {
		return
	}
	defer w.p.apart.Unlock()
	folder, table := w.r.IntN(folders), w.one(3)
	w.note(nil, "a thread with its own directories, in d%d, own table: %v", folder, table)
	done := make(chan struct{})
	var caught any
	go func() {
		defer close(done)
		defer func() { caught = recover() }()
		runtime.LockOSThread() // and never unlocked: the thread ends
		flags := unix.CLONE_FS
		if table {
			flags |= unix.CLONE_FILES
		}
		w.ok(unix.Unshare(flags), "unshare")
		w.ok(again(func() error { return unix.Fchdir(w.p.folders[folder]) }), "fchdir")
		for range 1 + w.r.IntN(20) {
			w.here(folder)
			sleep(w.r.IntN(3000))
		}
	}()
	w.within("the end of a thread", done)
	if caught != nil {
		panic(caught)
	}
}
