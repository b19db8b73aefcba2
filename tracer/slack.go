package tracer

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sys/unix"
)

// slackMargin is left free before our code: zero bytes at the end of a page may
// be data of what stands before them.
const slackMargin = 16

// findSlack finds n unused bytes in executable memory: zeros at the end of the
// vdso, or, where that has not enough, of the text of a program or library.
// Nothing is mapped for code: a page that appears would be seen, and would have
// to be writable or executable by turns.
//
// Several processes may have the same memory (clone(2) with CLONE_VM): what one of
// them has code of ours in is taken for the others.
func (e *engine) findSlack(p *process, t *thread, lines []mapLine, n uint64) (span, error) {
	taken := p.slack
	for _, o := range e.order {
		if o != p && len(o.slack) > 0 && o.sharesMemory(t) {
			taken = slices.Concat(taken, o.slack)
		}
	}
	page := make([]byte, pageSize)
	for _, vdso := range []bool{true, false} {
		for _, l := range lines {
			if !mayHoldCode(l) || l.path == "" || vdso != (l.path == "[vdso]") || p.exchanges(l) { // code made at run time may grow in a map without a name
				continue
			}
			if k, err := p.mem.ReadAt(page, int64(l.end-pageSize)); err != nil || k != len(page) {
				continue
			}
			p.dropResidue(page, l.end-pageSize, taken, func(s span) bool {
				return slices.ContainsFunc(e.order, func(o *process) bool { return (o == p || o.sharesMemory(t)) && o.comesTo(s, p.mem, lines) })
			})
			zeros := uint64(0)
			for zeros < pageSize && page[pageSize-1-zeros] == 0 {
				zeros++
			}
			if zeros < slackMargin {
				continue
			}
			if s, ok := p.takeSlack(span{l.end - zeros + slackMargin, l.end}, n, taken); ok {
				return s, nil
			}
		}
	}
	if ended(t.tid) {
		return span{}, errTargetGone
	}
	return span{}, fmt.Errorf("process %d (%s) has %w: %d are needed", p.pid, p.comm, errNoSlack, n)
}

var errNoSlack = errors.New("no unused bytes at the end of its vdso, program or libraries to place code in")

// borrowPage has the code in another thread that has the same memory map a page for the
// code of r, and unmap it at the end. A program that is linked statically has room for two
// of its threads or so, and needs more if these have directories or tables of their own.
// Nothing else of ours is mapped executable. If we die the page stays.
func (e *engine) borrowPage(r *remote, lines []mapLine) (span, error) {
	i := slices.IndexFunc(e.remotes, func(o *remote) bool {
		return o.control >= 0 && !o.t.gone && kcmp(r.t.tid, o.t.tid, kcmpVM, 0, 0) == 0
	})
	if i < 0 {
		return span{}, errNoSlack
	}
	lender := e.remotes[i]
	at, _ := slices.BinarySearchFunc(lines, r.region.start, func(l mapLine, start uint64) int { return cmp.Compare(l.start, start) })
	lines = slices.Insert(slices.Clone(lines), at, mapLine{start: r.region.start, end: r.region.end}) // taken as soon as its code runs
	page, err := r.p.findRoom(lines, pageSize)
	if err != nil {
		return span{}, err
	}
	b := lender.batch()
	b.add(unix.SYS_MMAP, page.start, pageSize, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, ^uint64(0), 0)
	if err := b.run(); err != nil {
		return span{}, fmt.Errorf("map a page for code: %w", err)
	}
	r.lender = lender
	return span{page.start, page.start + uint64(len(parasiteCode))}, nil
}

// returnPage unmaps what borrowPage has had mapped. The thread is not in it any more.
func (r *remote) returnPage() error {
	if r.lender == nil {
		return nil
	}
	b := r.lender.batch()
	b.add(unix.SYS_MUNMAP, r.code.start, pageSize)
	r.lender = nil
	if err := b.run(); err != nil {
		return fmt.Errorf("unmap the page of our code: %w", err)
	}
	return nil
}

// sharesMemory reports that a thread of another process has the same memory.
func (p *process) sharesMemory(t *thread) bool {
	i := slices.IndexFunc(p.order, func(t *thread) bool { return !t.gone })
	return i >= 0 && kcmp(t.tid, p.order[i].tid, kcmpVM, 0, 0) == 0
}

// dropResidue clears, in a copy of a page that is at base, code that a tracer
// left which died, or that gave its thread back by itself: unless it is needed.
func (p *process) dropResidue(page []byte, base uint64, taken []span, needed func(span) bool) {
	for at := 0; ; {
		old, ok := nextResidue(page, base, at)
		if !ok {
			return
		}
		at = int(old.end - base)
		if !slices.Contains(taken, old.span) && !needed(old.span) {
			clear(page[old.start-base : at])
		}
	}
}

// comesTo reports that a thread of p is in code, or may come back to it: a signal handler that
// began in its end, when the signals were let in again, returns there. So a word on the stack
// that is an address in the code is taken for that of a signal frame (sigreturn(2)).
func (p *process) comesTo(code span, mem io.ReaderAt, lines []mapLine) bool {
	return slices.ContainsFunc(p.order, func(t *thread) bool {
		return !t.gone && (code.contains(pc(&t.regs)) || pointsTo(code, mem, stackOf(t, lines)))
	})
}

// stackOf is what a thread has on its stack.
func stackOf(t *thread, lines []mapLine) span {
	sp := stackPointer(&t.regs)
	i, found := slices.BinarySearchFunc(lines, sp, func(l mapLine, sp uint64) int {
		switch {
		case l.end <= sp:
			return -1
		case l.start > sp:
			return 1
		}
		return 0
	})
	if !found {
		return span{}
	}
	return span{sp &^ 7, lines[i].end}
}

// pointsTo reports a word in memory that is an address in code. What cannot be read has none.
func pointsTo(code span, mem io.ReaderAt, in span) bool {
	part := make([]byte, 64<<10)
	for in.start < in.end {
		n, err := mem.ReadAt(part[:min(uint64(len(part)), in.end-in.start)], int64(in.start))
		for word := range slices.Chunk(part[:n&^7], 8) {
			if code.contains(binary.LittleEndian.Uint64(word)) {
				return true
			}
		}
		if err != nil {
			return false
		}
		in.start += uint64(n)
	}
	return false
}

// takeSlack takes n bytes from the end of free, below what is taken already.
func (p *process) takeSlack(free span, n uint64, taken []span) (span, bool) {
	end := free.end
	for {
		s := span{start: (end - n) &^ 15, end: 0}
		s.end = s.start + n
		if end < n || s.start < free.start {
			return span{}, false
		}
		i := slices.IndexFunc(taken, func(o span) bool { return o.start < s.end && s.start < o.end })
		if i < 0 {
			p.slack = append(p.slack, s)
			return s, true
		}
		end = taken[i].start
	}
}

func (p *process) freeSlack(s span) {
	p.slack = slices.DeleteFunc(p.slack, func(o span) bool { return o == s })
}

// layout reads the memory map of a stopped process.
func (p *process) layout(t *thread) ([]mapLine, error) {
	text, err := readProc(procPath(t.tid, "maps"))
	if gone(err) {
		return nil, errTargetGone
	}
	if err != nil {
		return nil, fmt.Errorf("maps of process %d (%s): %w", p.pid, p.comm, err)
	}
	if len(text) == 0 && ended(t.tid) {
		return nil, errTargetGone
	}
	lines, err := parseMaps(text)
	if err != nil {
		return nil, fmt.Errorf("maps of process %d (%s): %w", p.pid, p.comm, err)
	}
	return lines, nil
}

// findRoom finds n bytes of free addresses between two maps, with a page to spare
// on both sides. The stack, which grows down, keeps what is below it.
func (p *process) findRoom(lines []mapLine, n uint64) (span, error) {
	for i := len(lines) - 1; i > 0; i-- {
		below, above := lines[i-1].end, lines[i].start
		if lines[i].path == "[stack]" || above >= 1<<63 {
			continue
		}
		if above < below || above-below < n+2*pageSize {
			continue
		}
		return span{above - pageSize - n, above - pageSize}, nil
	}
	return span{}, fmt.Errorf("process %d (%s) has no %d bytes of free addresses", p.pid, p.comm, n)
}
