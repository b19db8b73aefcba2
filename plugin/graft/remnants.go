package graft

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// remnants finds its way in what a dead server had open. What they are like is asked once, by a duplicate for a moment.
type remnants struct {
	Remains
	used    map[uint64]bool // handles
	room    int             // see give
	byIno   map[uint64][]remnant
	objects map[uint64][]remnant
	closing chan int // see done
	stuck   bool
}

// remnant is one of them.
type remnant struct {
	number int
	handle uint64
	dev    uint64
	mode   uint32
	flags  int
}

func newRemnants(r Remains) *remnants {
	left := &remnants{Remains: r, used: map[uint64]bool{}, closing: make(chan int, keepAtOnce)}
	if r.Lender != nil { // this process does nothing else, and the swap may go on in a thread that was given up: nobody says that it is over
		go func() {
			for fd := range left.closing {
				_ = unix.Close(fd) // the lender has it
			}
		}()
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		left.room = int(min(limit.Cur, 1<<30) / 4 * 3)
	}
	return left
}

// give has a description go in the place of a file: a duplicate, as long as these leave a quarter of the descriptors free, which are given
// in ascending order. Beyond that it is the lender's, which takes a little longer while the target stands.
func (r *remnants) give(number int, err error) tracer.Replacement {
	if err != nil {
		return tracer.Replacement{FD: -1, Err: err}
	}
	fd, err := r.Lender.Take(number)
	switch {
	case err == nil && fd < r.room:
		return tracer.Replacement{FD: fd}
	case err == nil:
		r.done(fd)
	case !errors.Is(err, unix.EMFILE):
		return tracer.Replacement{FD: -1, Err: err}
	}
	return tracer.Replacement{FD: number, Lender: r.Lender}
}

// closeWait is how long closes may take that are in the way of others.
const closeWait = time.Second

// done closes a file that the lender has. A close may never come back, on a file system that wants to hear of it: then this one, and those that
// come after it, stay open as long as this process.
func (r *remnants) done(fd int) {
	if r.stuck {
		return
	}
	select {
	case r.closing <- fd:
	case <-time.After(closeWait):
		r.stuck = true
	}
}

// keepAtOnce is how many files are opened here before they go to the lender.
const keepAtOnce = 32

// keep leaves files that were opened here with the lender. Where it has no room either, they stay.
func (r *remnants) keep(own []*tracer.Replacement) {
	if r.Keep == nil || len(own) == 0 {
		return
	}
	files := make([]int, len(own))
	for i, m := range own {
		files[i] = m.FD
	}
	numbers, err := r.Keep(files)
	if err != nil || len(numbers) != len(files) {
		return
	}
	for i, m := range own {
		r.done(files[i])
		*m = tracer.Replacement{FD: numbers[i], Lender: r.Lender}
	}
}

// whatFor says what can be done where an ungraft fails for want of descriptors.
func (r *remnants) whatFor(err error) error {
	var limit unix.Rlimit
	if r.Lender == nil || !errors.Is(err, unix.EMFILE) || unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return err
	}
	return fmt.Errorf("%w. Who takes the layer of a dead server off may have %d files open, and needs more than there are open on the layer. Give more to its keeper, as somebody with CAP_SYS_RESOURCE (prlimit --pid %d --nofile=1048576:1048576), "+
		"or have the target close some: it is tried again all the time", err, limit.Cur, r.Lender.PID)
}

// look asks what the remnants are like, by inode number.
func (r *remnants) look(numbers map[uint64]int, each func(fd int, is *remnant) error) (map[uint64][]remnant, error) {
	found := map[uint64][]remnant{}
	if r.Lender == nil {
		return found, nil
	}
	for handle, number := range numbers {
		fd, err := r.Lender.Take(number)
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			return nil, fmt.Errorf("look at what the dead server had open: %w", err)
		}
		if err != nil {
			continue
		}
		var s unix.Stat_t
		is := remnant{number: number, handle: handle}
		err = unix.Fstat(fd, &s)
		if err == nil {
			err = each(fd, &is)
		}
		r.done(fd)
		if err == nil {
			is.dev, is.mode = s.Dev, s.Mode
			found[s.Ino] = append(found[s.Ino], is)
		}
	}
	return found, nil
}

// description finds the description that a file of the layer stands for.
func (d *detachment) description(o *tracer.Description) (number int, ok bool, err error) {
	r := d.remnants
	if d.HandleIoctl != 0 {
		if handle, err := handleOf(o.File, d.HandleIoctl); err == nil {
			if number, ok = r.Descriptions[handle]; ok {
				r.used[handle] = true
			}
			return number, ok, nil
		}
	}
	return d.descriptionLike(o) // the connection is aborted, or nobody stands in for the server
}

// descriptionLike goes by inode number, mode and, where several file systems below the layer have the number, by what lies at its path.
func (d *detachment) descriptionLike(o *tracer.Description) (number int, ok bool, err error) {
	const mode = unix.O_ACCMODE | unix.O_APPEND | unix.O_DIRECTORY
	r := d.remnants
	if r.byIno == nil {
		if r.byIno, err = r.look(r.Descriptions, func(fd int, is *remnant) (err error) {
			is.flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			return err
		}); err != nil {
			return -1, false, err
		}
	}
	like := slices.Clone(r.byIno[o.Ino])
	like = slices.DeleteFunc(like, func(is remnant) bool { return r.used[is.handle] || is.flags&mode != o.Flags&mode })
	if severalDevices(like) {
		there, err := d.byPath(o)
		if err != nil {
			return -1, false, nil
		}
		var s unix.Stat_t
		err = unix.Fstat(there, &s)
		_ = unix.Close(there) // another one of the same file
		if err != nil {
			return -1, false, nil
		}
		like = slices.DeleteFunc(like, func(is remnant) bool { return is.dev != s.Dev })
	}
	if len(like) == 0 {
		return -1, false, nil
	}
	r.used[like[0].handle] = true
	return like[0].number, true, nil
}

func severalDevices(all []remnant) bool {
	return slices.ContainsFunc(all, func(is remnant) bool { return is.dev != all[0].dev })
}

// objectLike is what the server had open of the object, if it is known which: on another mount below may be one of that number.
func (d *detachment) objectLike(o *tracer.Description) (number int, ok bool, err error) {
	r := d.remnants
	if r.objects == nil {
		numbers := map[uint64]int{}
		for i, n := range r.Objects {
			numbers[uint64(i)] = n
		}
		if r.objects, err = r.look(numbers, func(int, *remnant) error { return nil }); err != nil {
			return -1, false, err
		}
	}
	like := slices.Clone(r.objects[o.Ino])
	like = slices.DeleteFunc(like, func(is remnant) bool { return is.mode&unix.S_IFMT != o.Mode&unix.S_IFMT })
	if len(like) == 0 || severalDevices(like) {
		return -1, false, nil
	}
	return like[0].number, true, nil
}
