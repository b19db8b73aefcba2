package tracer

import (
	"strings"
)

const reasonWatch = "the watch stays at the inode it is at: it reports what happens to that"

// watches reports the watches of an inotify or fanotify group that are on objects
// of the swap.
func (s *scanner) watches(h *heldSource, text []byte) (r []heldReport, err error) {
	all, err := parseWatches(text)
	if err != nil {
		return nil, err
	}
	for _, w := range all {
		o := h.object(Watch)
		o.Index, o.MountID, o.Dev, o.Ino = w.wd, w.mountID, w.dev, w.ino
		if s.o.Locate != nil && w.ino != 0 {
			path, ok := s.o.Locate(w.dev, w.ino, w.handle)
			if !ok {
				continue
			}
			o.Path = path
		}
		if s.o.Match(&o) {
			r = append(r, heldReport{ObjectReport{Object: o, Reason: reasonWatch}, true})
		}
	}
	return r, nil
}

const reasonPolled = "it is registered in an epoll instance: the entry does not come along, it goes with the file that was there"

// polledFiles reports the entries of an epoll instance that are objects of the
// swap. Few file systems let a file be polled; FUSE does.
func (s *scanner) polledFiles(h *heldSource, text []byte) (r []heldReport, err error) {
	all, err := parsePolled(text)
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		o := h.object(Polled)
		o.Index, o.Dev, o.Ino = p.fd, p.dev, p.ino
		for _, sl := range h.table.slots {
			if sl.fd == p.fd && sl.obj.Ino == p.ino {
				o.Path, o.Deleted, o.MountID, o.Dev, o.Mode, o.Flags = sl.obj.Path, sl.obj.Deleted, sl.obj.MountID, sl.obj.Dev, sl.obj.Mode, sl.obj.Flags
			}
		}
		if !strings.HasPrefix(o.Path, "/") {
			o.Path, o.Mode = "", 0
		}
		if s.o.Match(&o) {
			r = append(r, heldReport{ObjectReport: ObjectReport{Object: o, Reason: reasonPolled}})
		}
	}
	return r, nil
}
