package graft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// stores are what programs have stored in shared maps of a layer whose server is dead. It is in pages of the layer until the kernel
// writes them to the server, which nobody answers any more. So it is copied to the file below while all that have the map are
// stopped. Which pages it is /proc/kpageflags tells: the first store to a page that is in the file marks it dirty
// (do_page_mkwrite and fault_dirty_shared_page of mm/memory.c).
type stores struct {
	seen []storedMap
}

// storedMap is a file with shared maps, and the offsets of pages that were dirty before the connection was aborted.
type storedMap struct {
	file    *tracer.Description
	holders []tracer.Object
	dirty   map[uint64]bool
	err     error
}

// lookWait bounds the look at page tables while the processes run: one of them may be within an munmap(2) that waits for the dead server.
const lookWait = 500 * time.Millisecond

// note takes a file in, before its processes are stopped.
func (s *stores) note(o *tracer.Description) {
	if o.Kind == tracer.Map && o.Flags&unix.O_ACCMODE == unix.O_RDWR {
		s.seen = append(s.seen, storedMap{file: o, holders: slices.Clone(o.Holders)})
	}
}

// look is for the moment before the connection is aborted: after it pages that the kernel was about to write are not dirty any more.
func (s *stores) look() {
	seen := make(chan []storedMap, 1)
	all := slices.Clone(s.seen)
	go func() {
		for i := range all {
			m := &all[i]
			m.dirty = map[uint64]bool{}
			for k := range m.holders {
				if err := dirtyPages(&m.holders[k], false, m.dirty); err != nil && !errors.Is(err, os.ErrNotExist) {
					m.err = err
				}
			}
		}
		seen <- all
	}()
	select {
	case s.seen = <-seen:
	case <-time.After(lookWait):
		s.seen = nil // the goroutine has it
	}
}

// save copies what was stored to the file below, which is open at fd. All that have the map are stopped.
func (s *stores) save(o *tracer.Description, fd int) error {
	m := storedMap{dirty: map[uint64]bool{}}
	if i := slices.IndexFunc(s.seen, func(m storedMap) bool { return m.file == o && m.dirty != nil }); i >= 0 {
		m = s.seen[i]
	}
	for k := range o.Holders {
		if err := dirtyPages(&o.Holders[k], true, m.dirty); err != nil {
			m.err = err
		}
	}
	if len(m.dirty) == 0 {
		return m.err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	for k := range o.Holders {
		if err := copyStored(&o.Holders[k], m.dirty, fd, uint64(st.Size)); err != nil {
			m.err = err
		}
	}
	if len(m.dirty) > 0 && m.err == nil {
		m.err = fmt.Errorf("%d pages are not mapped any more", len(m.dirty))
	}
	return m.err
}

// copyStored copies pages that are in a map, and takes them off the list.
func copyStored(m *tracer.Object, dirty map[uint64]bool, fd int, size uint64) error {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", m.PID))
	if err != nil {
		return err
	}
	defer func() { _ = mem.Close() }() // read only
	page := make([]byte, os.Getpagesize())
	var failed error
	for offset := range dirty {
		if !m.Shared || offset < m.Offset || offset >= m.Offset+m.End-m.Start {
			continue
		}
		if offset < size { // what lies behind the end of a file is in no file
			n, err := mem.ReadAt(page[:min(uint64(len(page)), size-offset)], int64(m.Start+offset-m.Offset))
			if err == nil {
				_, err = unix.Pwrite(fd, page[:n], int64(offset))
			}
			if err != nil {
				failed = fmt.Errorf("page at %#x of the file: %w", offset, err)
				continue
			}
		}
		delete(dirty, offset)
	}
	return failed
}

// mostTouched is how many pages of a map are looked for that are in memory, but not in the process's tables.
const mostTouched = 16 << 10

// dirtyPages adds the offsets of pages that have to be written. touch has those brought into the process's tables that are in memory:
// the process must be stopped, and the connection aborted, or it would wait for the server.
func dirtyPages(m *tracer.Object, touch bool, dirty map[uint64]bool) error {
	if !m.Shared {
		return nil
	}
	// proc_pid_pagemap(5), and the table of flags in include/uapi/linux/kernel-page-flags.h
	const present, frame, isDirty, isWritten = 1 << 63, 1<<55 - 1, 1 << 4, 1 << 8
	size := uint64(os.Getpagesize())
	table, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", m.PID))
	if err != nil {
		return err
	}
	defer func() { _ = table.Close() }() // read only
	flags, err := os.Open("/proc/kpageflags")
	if err != nil {
		return err
	}
	defer func() { _ = flags.Close() }() // read only
	var mem *os.File
	if touch {
		if mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", m.PID)); err != nil {
			return err
		}
		defer func() { _ = mem.Close() }() // read only
	}
	entries, one, touched := make([]byte, 8<<10), make([]byte, 8), 0
	for at := m.Start; at < m.End; {
		n, err := table.ReadAt(entries[:min(uint64(len(entries)), (m.End-at)/size*8)], int64(at/size*8))
		if n < 8 {
			return fmt.Errorf("pages of the map: %w", err)
		}
		for i := range n / 8 {
			address := at + uint64(i)*size
			entry := binary.NativeEndian.Uint64(entries[8*i:])
			if entry&present == 0 && touch && touched < mostTouched {
				touched++
				if _, err := mem.ReadAt(one[:1], int64(address)); err != nil {
					continue // it is not in memory
				}
				if _, err := table.ReadAt(one, int64(address/size*8)); err != nil {
					return err
				}
				entry = binary.NativeEndian.Uint64(one)
			}
			if entry&present == 0 {
				continue
			}
			if entry&frame == 0 {
				return errors.New("/proc/PID/pagemap does not tell which pages it is: CAP_SYS_ADMIN is needed")
			}
			if _, err := flags.ReadAt(one, int64(entry&frame*8)); err != nil {
				return fmt.Errorf("/proc/kpageflags: %w", err)
			}
			if binary.NativeEndian.Uint64(one)&(isDirty|isWritten) != 0 {
				dirty[m.Offset+address-m.Start] = true
			}
		}
		at += uint64(n/8) * size
	}
	return nil
}
