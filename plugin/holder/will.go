package holder

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// will is all that the child knows. It lies outside of Go's heap and has numbers
// and addresses only, so that the child can use it without the Go runtime.
type will struct {
	server, guard         int32 // pidfds
	claimRead, claimWrite int32
	patience              int32 // tenths of a second
	claimed               byte  // generation of the claim

	path, args, env uintptr // as execve(2) takes them
	generation      *byte   // the one in the last argument that tells it; nil for none

	title     *byte // where the process's own arguments are, which ps shows; nil for nowhere
	titleSize uintptr
	name      [16]byte
}

// newWill writes it. free may be called in the parent when the child has been made.
func newWill(o Options, server int) (w *will, free func(), err error) {
	if o.Successor == "" || len(o.Args) == 0 {
		return nil, nil, errors.New("no program to follow it")
	}
	size := int(unsafe.Sizeof(will{})) + len(o.Successor) + 1
	words := 8
	for _, s := range append(append([]string{}, o.Args...), o.Env...) {
		if strings.IndexByte(s, 0) >= 0 {
			return nil, nil, fmt.Errorf("argument %q has a NUL in it", s)
		}
		size, words = size+len(s)+1, words+1
	}
	size += words * int(unsafe.Sizeof(uintptr(0)))
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, fmt.Errorf("memory: %w", err)
	}
	w = (*will)(unsafe.Pointer(&mem[0]))
	at := int(unsafe.Sizeof(will{}))
	table := func(n int) []uintptr {
		t := unsafe.Slice((*uintptr)(unsafe.Pointer(&mem[at])), n)
		at += n * int(unsafe.Sizeof(uintptr(0)))
		return t
	}
	args, env := table(len(o.Args)+1), table(len(o.Env)+1) // the last stays 0
	text := func(s string) (address uintptr) {
		p := &mem[at]
		if i := strings.IndexByte(s, '@'); i >= 0 { // the last one's stays
			w.generation = &mem[at+i]
		}
		at += copy(mem[at:], s) + 1
		return uintptr(unsafe.Pointer(p))
	}
	w.path = text(o.Successor)
	for i, s := range o.Env {
		env[i] = text(s)
	}
	for i, s := range o.Args {
		w.generation = nil
		args[i] = text(s)
	}
	w.args, w.env = uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&env[0]))
	w.server, w.guard, w.claimRead, w.claimWrite = int32(server), int32(o.Guard), int32(o.Claim.Read), int32(o.Claim.Write)
	w.patience, w.claimed = int32(o.Patience/(100*time.Millisecond)), o.Generation
	copy(w.name[:len(w.name)-1], Name)
	w.title, w.titleSize = title()
	return w, func() { _ = unix.Munmap(mem) }, nil
}

// title is where the kernel put the process's arguments, one behind the other; nil if os.Args does not show them any more.
func title() (start *byte, size uintptr) {
	for i, a := range os.Args {
		if len(a) == 0 {
			return nil, 0
		}
		p := unsafe.StringData(a)
		if i == 0 {
			start = p
		}
		if uintptr(unsafe.Pointer(p)) != uintptr(unsafe.Pointer(start))+size {
			return nil, 0
		}
		size += uintptr(len(a)) + 1
	}
	if size <= uintptr(len(Name)) {
		return nil, 0
	}
	return start, size
}
