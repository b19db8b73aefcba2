package tracer

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// item is a Description with what goes in its place.
type item struct {
	Description
	file    int     // -1 until it is opened
	repl    int     // -1 until Replace gave it
	lender  *Lender // who has repl open; nil: this process
	fresh   manner  // of repl, when it was given
	asked   bool
	err     error // why there is none
	noFlags bool  // O_PATH: no offset, no flags to copy
	locked  bool  // a holder had a POSIX lock at it when it was looked at
	live    bool  // a process runs with the new file: what it has is not to be overwritten
}

type fileKey struct {
	dev, ino uint64
	flags    int
}

type placeKey struct {
	kind            Kind
	mount, dev, ino uint64
	path            string
	flags           int
}

// itemOf finds the item of an open file description, of which file is a
// duplicate that it takes.
func (s *scanner) itemOf(o *Object, file int) *item {
	key := fileKey{o.Dev, o.Ino, o.Flags & unix.O_ACCMODE}
	set := s.byFile[key]
	if set == nil {
		set = &kcmpSet[*item]{}
		s.byFile[key] = set
	}
	it, isNew := set.find(func(it *item) int { return kcmp(s.self, s.self, kcmpFile, file, it.file) }, func() *item {
		return newItem(o, file)
	})
	if isNew {
		s.items = append(s.items, it)
	} else {
		_ = unix.Close(file) // one more reference of a description we hold
	}
	return it
}

// unanswered: there is no new file yet, nor was one asked for.
func (it *item) unanswered() bool { return !it.asked && len(it.Holders) > 0 }

func newItem(o *Object, file int) *item {
	return &item{Description: Description{Kind: o.Kind, Path: o.Path, Deleted: o.Deleted, MountID: o.MountID, Dev: o.Dev, Ino: o.Ino, Mode: o.Mode,
		Flags: o.Flags &^ unix.O_CLOEXEC, File: file}, file: file, repl: -1, noFlags: o.Kind != Descriptor || o.Flags&unix.O_PATH != 0}
}

// placeItem finds the item of a directory or a map, or opens it. The error is gone if the program
// changed it meanwhile.
func (s *scanner) placeItem(o *Object, path string, flags int) (*item, error) {
	key := placeKey{o.Kind, o.MountID, o.Dev, o.Ino, o.Path, o.Flags}
	it := s.byPlace[key]
	if it == nil {
		file, err := s.open(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		if changed, err := isAnother(o, file); err != nil || changed {
			_ = unix.Close(file) // it was only looked at
			if err == nil {
				err = fmt.Errorf("%s was changed: %w", o, os.ErrNotExist) // the stop finds what is there then
			}
			return nil, err
		}
		it = newItem(o, file)
		key.path = o.Path
		s.byPlace[key] = it
		s.items = append(s.items, it)
	}
	it.Holders = append(it.Holders, *o)
	return it, nil
}
