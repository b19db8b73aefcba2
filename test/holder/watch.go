package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

var eventNames = map[uint32]string{
	unix.IN_ACCESS: "access", unix.IN_MODIFY: "modify", unix.IN_ATTRIB: "attrib", unix.IN_CLOSE_WRITE: "close_write",
	unix.IN_CLOSE_NOWRITE: "close_nowrite", unix.IN_OPEN: "open", unix.IN_MOVED_FROM: "moved_from", unix.IN_MOVED_TO: "moved_to",
	unix.IN_CREATE: "create", unix.IN_DELETE: "delete", unix.IN_DELETE_SELF: "delete_self", unix.IN_MOVE_SELF: "move_self",
	unix.IN_UNMOUNT: "unmount", unix.IN_IGNORED: "ignored", unix.IN_Q_OVERFLOW: "overflow",
}

// watch adds a watch for everything to an inotify instance, which it makes.
func watch(name, path string) (wd int, err error) {
	fd, ok := files[name]
	if !ok {
		if fd, err = unix.InotifyInit1(unix.IN_NONBLOCK); err != nil {
			return -1, err
		}
		files[name] = fd
	}
	return unix.InotifyAddWatch(fd, path, unix.IN_ALL_EVENTS)
}

// events names what came since, each kind once: "1:create:new,2:modify:".
func events(fd int) (string, error) {
	seen := map[string]bool{}
	b := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			return "", err
		}
		for r := b[:n]; len(r) >= unix.SizeofInotifyEvent; {
			wd, mask, size := int32(binary.NativeEndian.Uint32(r)), binary.NativeEndian.Uint32(r[4:]), binary.NativeEndian.Uint32(r[12:])
			name := string(bytes.TrimRight(r[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], "\x00"))
			seen[fmt.Sprintf("%d:%s:%s", wd, eventNames[mask&^uint32(unix.IN_ISDIR)], name)] = true
			r = r[unix.SizeofInotifyEvent+size:]
		}
	}
	all := make([]string, 0, len(seen))
	for e := range seen {
		all = append(all, e)
	}
	sort.Strings(all)
	return strings.Join(all, ","), nil
}

// poll adds a descriptor to an epoll instance, which it makes.
func poll(name string, fd int) error {
	ep, ok := files[name]
	if !ok {
		var err error
		if ep, err = unix.EpollCreate1(0); err != nil {
			return err
		}
		files[name] = ep
	}
	return unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// ready counts what an epoll instance has to tell.
func ready(fd int) (int, error) {
	return unix.EpollWait(fd, make([]unix.EpollEvent, 16), 0)
}
