package tracer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A tracer that is killed leaves its code in the threads that it had borrowed: for some 0.1 s
// as a rule, for as long as its last batch takes, and for 3 s where it died before it had our
// ends of the sockets. Such a thread is in no state to be swapped: it has sockets and scratch
// memory of that code, may be about to fill slots, and has the place that other code needs. So
// when a later tracer stops a thread in there, it has it come out first.

// mayHoldCode reports a map that code of ours can be in: see findSlack and borrowPage.
func mayHoldCode(l mapLine) bool {
	if l.prot != unix.PROT_READ|unix.PROT_EXEC || l.shared {
		return false
	}
	return l.path == "[vdso]" || strings.HasPrefix(l.path, "/") || l.path == "" && l.end-l.start == pageSize
}

// residue is code that was found in a process.
type residue struct {
	span
	fini uint64 // address of the part that closes, unmaps and gives the thread back
}

// nextResidue finds code of ours in page, a copy of what is at base, from offset at on.
func nextResidue(page []byte, base uint64, at int) (r residue, ok bool) {
	mark := parasiteCode[:paraHeader-8]
	i := bytes.Index(page[at:], mark)
	if i < 0 || at+i+paraHeader > len(page) {
		return residue{}, false
	}
	at += i
	n := int(binary.LittleEndian.Uint64(page[at+len(mark):]))
	if n < paraHeader+8*wordCount || n > len(page)-at {
		return residue{}, false
	}
	r.span = span{base + uint64(at), base + uint64(at+n)}
	if fini := binary.LittleEndian.Uint64(page[at+n-8*wordCount+8*wordFini:]); fini < uint64(n-8*wordCount) {
		r.fini = r.start + fini
	}
	return r, true
}

// comeOut has the stopped threads that are in code of a dead tracer go on with it, and asks
// them to stop again. It returns how many there were.
func (x *transaction) comeOut(d *pause) (n int, err error) {
	var out []*thread
	for _, p := range x.e.order {
		var ends []uint64
		if m := x.s.maps[p.pid]; m != nil {
			ends = m.code
		}
		for _, t := range p.order {
			if t.gone || !t.stopped || !slices.Contains(ends, pageUp(pc(&t.regs)+1)) {
				continue
			}
			r, inside, err := residueAt(t)
			if err != nil {
				return 0, err
			}
			if !inside {
				continue
			}
			if err := r.leadOut(t); err != nil {
				return 0, fmt.Errorf("registers of thread %d (%s): %w", t.tid, p.comm, err)
			}
			t.stopped = false
			if err := cont(unix.PTRACE_CONT, t.tid, 0); err != nil {
				return 0, err
			}
			out = append(out, t)
		}
	}
	if len(out) == 0 {
		return 0, nil
	}
	d.sleep() // longer each time: a thread that is asked to stop before it has run at all comes nowhere
	for _, t := range out {
		t.before = lookBefore(t.tid)
		if err := ptraceValue(unix.PTRACE_INTERRUPT, t.tid, 0, 0); err != nil && !errors.Is(err, syscall.ESRCH) {
			return 0, fmt.Errorf("interrupt thread %d: %w", t.tid, err)
		}
	}
	if x.e.insideSince.IsZero() {
		x.e.insideSince = time.Now()
	}
	if time.Now().After(x.deadline) {
		return 0, fmt.Errorf("thread %d is in code of an earlier swap that was killed, and does not come to its end for %v", out[0].tid, time.Since(x.e.insideSince).Round(time.Millisecond))
	}
	return len(out), nil
}

// residueAt finds the code that a stopped thread is in.
func residueAt(t *thread) (r residue, inside bool, err error) {
	mem, err := os.Open(procPath(t.tid, "mem")) // not process.mem: the thread may call execve when it is out
	if err != nil {
		if gone(err) || ended(t.tid) {
			return residue{}, false, nil
		}
		return residue{}, false, fmt.Errorf("memory of thread %d: %w", t.tid, err)
	}
	defer func() { _ = mem.Close() }() // read only
	page := make([]byte, pageSize)
	base := pc(&t.regs) &^ (pageSize - 1)
	if n, err := mem.ReadAt(page, int64(base)); err != nil || n != len(page) {
		return residue{}, false, nil // it runs what cannot be read: not ours
	}
	for at := 0; ; at = int(r.end - base) {
		if r, inside = nextResidue(page, base, at); !inside || r.contains(pc(&t.regs)) {
			return r, inside, nil
		}
	}
}

// leadOut leads a thread that waits for a batch, which will not come, to the end of the code: the
// wait begins anew each time that it is stopped. A batch that has begun is not cut off.
func (r *residue) leadOut(t *thread) error {
	nr, _, ok := inSyscall(&t.regs)
	if !ok || nr != unix.SYS_RECVFROM || r.fini == 0 {
		return nil
	}
	regs := startRegs(t.regs, r.fini)
	if err := setRegs(t.tid, &regs); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}
