package tracer

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The parsers of what procfs and sysfs tell of files that the kernel holds
// without a descriptor: pure functions of their text.

// parseQueued reads how many descriptors wait in the queue of a unix socket from
// its fdinfo (unix_show_fdinfo, net/unix/af_unix.c, Linux 5.8). false: it is no
// unix socket.
func parseQueued(text []byte) (n int, unix bool, err error) {
	for line := range strings.Lines(string(text)) {
		v, ok := strings.CutPrefix(line, "scm_fds:")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 31)
		if err != nil {
			return 0, true, fmt.Errorf("line %q: %w", strings.TrimSpace(line), err)
		}
		return int(n), true, nil
	}
	return 0, false, nil
}

// ringFile is a slot of an io_uring's table of fixed files.
type ringFile struct {
	slot int
	path string // link text as in /proc/PID/fd
}

// parseRing reads the fixed files from the fdinfo of an io_uring
// (__io_uring_show_fdinfo, io_uring/fdinfo.c):
//
//	UserFiles:	5
//	    0: /data/a\040b
//	    3: socket:[4711]
//
// told is false where the kernel shows none of it, because the ring is busy.
func parseRing(text []byte) (files []ringFile, told bool, err error) {
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if v, ok := strings.CutPrefix(line, "UserFiles:"); ok {
			if _, err := strconv.ParseUint(strings.TrimSpace(v), 10, 31); err != nil {
				return nil, false, fmt.Errorf("line %q: %w", line, err)
			}
			told = true
			continue
		}
		if !told {
			continue
		}
		no, path, ok := strings.Cut(strings.TrimLeft(line, " "), ": ")
		n, nerr := strconv.ParseUint(no, 10, 31)
		if !ok || nerr != nil { // "UserBufs:" and what else comes after the files
			break
		}
		if path == "<none>" { // older kernels show empty slots
			continue
		}
		files = append(files, ringFile{int(n), unescape(path)})
	}
	return files, told, nil
}

// unescape takes back what the kernel does to blanks and backslashes in paths
// (mangle_path, fs/seq_file.c): \040.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// watch is a watch of inotify or fanotify, as in its fdinfo.
type watch struct {
	wd      int    // of inotify; -1 for fanotify
	ino     uint64 // 0: it is on all of a mount or a file system
	dev     uint64 // of the file system, in the form of st_dev; 0 for all of a mount
	mountID uint64 // for all of a mount
	handle  *unix.FileHandle
}

// parseWatches reads the watches from the fdinfo of an inotify or fanotify group
// (fs/notify/fdinfo.c):
//
//	inotify wd:2 ino:988109 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:098198004f646f5e
//	fanotify ino:98810e sdev:fe00000 mflags:0 mask:20 ignored_mask:0 …
//	fanotify mnt_id:1b mflags:0 mask:20 ignored_mask:0
//	fanotify sdev:fe00000 mflags:0 mask:20 ignored_mask:0
//	fanotify flags:0 event-flags:8000
func parseWatches(text []byte) ([]watch, error) {
	var all []watch
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "inotify" && f[0] != "fanotify" || strings.HasPrefix(f[1], "flags:") {
			continue
		}
		w := watch{wd: -1}
		handleType := int64(0)
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, ":")
			var err error
			var n uint64
			switch k {
			case "wd":
				w.wd, err = strconv.Atoi(v)
			case "ino":
				w.ino, err = strconv.ParseUint(v, 16, 64)
			case "sdev":
				n, err = strconv.ParseUint(v, 16, 32)
				w.dev = kernelDevice(n)
			case "mnt_id":
				w.mountID, err = strconv.ParseUint(v, 16, 64)
			case "fhandle-type":
				handleType, err = strconv.ParseInt(v, 16, 32)
			case "f_handle":
				var b []byte
				if b, err = hex.DecodeString(v); err == nil && len(b) > 0 {
					h := unix.NewFileHandle(int32(handleType), b)
					w.handle = &h
				}
			}
			if err != nil {
				return nil, fmt.Errorf("line %q: %s: %w", strings.TrimSpace(line), k, err)
			}
		}
		all = append(all, w)
	}
	return all, nil
}

// kernelDevice turns a dev_t as the kernel keeps it (20 bits of minor number,
// include/linux/kdev_t.h) into the form of st_dev.
func kernelDevice(n uint64) uint64 { return unix.Mkdev(uint32(n>>20), uint32(n&(1<<20-1))) }

// polled is a file that an epoll instance watches.
type polled struct {
	fd       int // its number when it was added
	dev, ino uint64
}

// parsePolled reads what an epoll instance watches from its fdinfo
// (ep_show_fdinfo, fs/eventpoll.c):
//
//	tfd:        6 events:       19 data:                0  pos:0 ino:70045 sdev:9
func parsePolled(text []byte) ([]polled, error) {
	var all []polled
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "tfd:")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if len(f) == 0 {
			return nil, fmt.Errorf("line %q", strings.TrimSpace(line))
		}
		var p polled
		var err error
		p.fd, err = strconv.Atoi(f[0])
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, ":")
			var n uint64
			switch {
			case err != nil:
			case k == "ino":
				p.ino, err = strconv.ParseUint(v, 16, 64)
			case k == "sdev":
				n, err = strconv.ParseUint(v, 16, 32)
				p.dev = kernelDevice(n)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", strings.TrimSpace(line), err)
		}
		all = append(all, p)
	}
	return all, nil
}

// parseSwaps reads the swap files from /proc/swaps (swap_show, mm/swapfile.c):
//
//	Filename				Type		Size		Used		Priority
//	/swap\040file                           file		1048572		0		-2
func parseSwaps(text []byte) (paths []string) {
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "file" && strings.HasPrefix(f[0], "/") {
			paths = append(paths, unescape(f[0]))
		}
	}
	return paths
}
