package fusefs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// savedTable is what a table says, in the order in which it was written.
type savedTable struct {
	*stateTable // a private copy
	nodes       []saved[nodeSlot]
	names       []saved[textSlot]
	lasts       []saved[textSlot]
	handles     []saved[handleSlot]
	owners      []saved[ownerSlot]
	forgotten   []saved[forgottenSlot]
	rules       []saved[ruleSlot]
	faults      []saved[faultSlot]
}

type saved[T any] struct {
	seq uint64
	at  *T
}

// read reads the table in force, which nobody writes any more. It does not change it.
func (s *State) read() (*savedTable, error) {
	fd := s.files[stateTable0+int(s.head.active.Load())]
	head, err := mapTable(fd, unix.MAP_SHARED, chunkBytes)
	if err != nil {
		return nil, err
	}
	n := head.head.chunks.Load()
	head.close()
	// No more than is used: a private copy counts where memory is not overcommitted.
	t, err := mapTable(fd, unix.MAP_PRIVATE, int(min(max(n, 1), chunks))*chunkBytes)
	if err != nil {
		return nil, err
	}
	v := &savedTable{stateTable: t}
	if err := v.load(); err != nil {
		t.close()
		return nil, err
	}
	return v, nil
}

func (v *savedTable) load() error {
	t := v.stateTable
	switch {
	case t.head.chunks.Load() == 0:
		return errors.New("its state is empty: it was not served, or it has ended")
	case t.head.incomplete.Load():
		return errors.New("there was no room for its whole state")
	}
	if err := t.redoAll(); err != nil {
		return err
	}
	if err := t.each(v.slot); err != nil {
		return err
	}
	order(v.nodes)
	order(v.names)
	order(v.lasts)
	order(v.handles)
	order(v.owners)
	order(v.forgotten)
	order(v.rules)
	order(v.faults)
	return nil
}

func order[T any](all []saved[T]) {
	slices.SortFunc(all, func(a, b saved[T]) int { return cmp.Compare(a.seq, b.seq) })
}

// slot takes in one slot of a table.
func (v *savedTable) slot(k slotKind, seq uint64, p unsafe.Pointer, room int) error {
	var ok bool
	switch k {
	case slotNode:
		v.nodes, ok = save(v.nodes, seq, p, room, nil)
	case slotName:
		v.names, ok = save(v.names, seq, p, room, func(s *textSlot) uint64 { return s.size })
	case slotLast:
		v.lasts, ok = save(v.lasts, seq, p, room, func(s *textSlot) uint64 { return s.size })
	case slotHandle:
		v.handles, ok = save(v.handles, seq, p, room, nil)
	case slotOwner:
		v.owners, ok = save(v.owners, seq, p, room, nil)
	case slotForgotten:
		v.forgotten, ok = save(v.forgotten, seq, p, room, func(s *forgottenSlot) uint64 { return uint64(s.handleSize) + uint64(s.pathSize) })
	case slotRule:
		v.rules, ok = save(v.rules, seq, p, room, nil)
	case slotFault:
		v.faults, ok = save(v.faults, seq, p, room, func(s *faultSlot) uint64 { return s.size })
	}
	if !ok {
		return fmt.Errorf("state of a fault layer: a record of kind %d, in a slot of %d bytes, makes no sense", k, room)
	}
	return nil
}

// save takes in a slot, which may have so many bytes after it.
func save[T any](all []saved[T], seq uint64, p unsafe.Pointer, room int, more func(*T) uint64) ([]saved[T], bool) {
	size := unsafe.Sizeof(*new(T))
	if int(size) > room {
		return all, false
	}
	s := (*T)(p)
	if more != nil && more(s) > uint64(room)-uint64(size) {
		return all, false
	}
	return append(all, saved[T]{seq, s}), true
}
