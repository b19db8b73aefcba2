package tracer

import (
	"cmp"
	"errors"
	"fmt"
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
	taken := e.slackOf(p, t)
	page := make([]byte, pageSize)
	for _, vdso := range []bool{true, false} {
		for _, l := range lines {
			if !mayHoldCode(l) || l.path == "" || vdso != (l.path == "[vdso]") || p.exchanges(l) { // code made at run time may grow in a map without a name
				continue
			}
			if k, err := p.mem.ReadAt(page, int64(l.end-pageSize)); err != nil || k != len(page) {
				continue
			}
			p.dropResidue(page, l.end-pageSize, taken)
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

// slackOf lists the places of code in the memory of a thread.
func (e *engine) slackOf(p *process, t *thread) []span {
	taken := slices.Clone(p.slack)
	for _, o := range e.order {
		if o == p || len(o.slack) == 0 {
			continue
		}
		if i := slices.IndexFunc(o.order, func(t *thread) bool { return !t.gone }); i >= 0 && kcmp(t.tid, o.order[i].tid, kcmpVM, 0, 0) == 0 {
			taken = append(taken, o.slack...)
		}
	}
	return taken
}

// dropResidue clears, in a copy of a page that is at base, code that a tracer
// left which died: unless a thread is still in it.
func (p *process) dropResidue(page []byte, base uint64, taken []span) {
	for at := 0; ; {
		old, ok := nextResidue(page, base, at)
		if !ok {
			return
		}
		at = int(old.end - base)
		ours := slices.Contains(taken, old.span)
		inside := slices.ContainsFunc(p.order, func(t *thread) bool { return !t.gone && old.contains(pc(&t.regs)) })
		if !ours && !inside {
			clear(page[old.start-base : at])
		}
	}
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
