package fusefs

import (
	"fmt"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Unanswered is what a dead server had booked of requests that it had not answered, for who takes its layer off without
// another server. A call whose request is answered by it returns; the others are made again below the layer, which for what
// was done already would be once more: mkdir(2) of a name that is there by now, or a second append. Which
// is which is told as by a server that follows (ledger).
type Unanswered struct {
	booked map[uint64]*ledgerSlot // by request
	nodes  map[uint64]*node       // that requests are about which may have been done; of each, the descriptor alone
	rooms  *ledger                // where requests were read into, if the kernel cannot send them again; nothing else of it
	ended  time.Time              // the server had ended by then
	// setxattrLong: SETXATTR has flags of its own (FUSE_SETXATTR_EXT).
	setxattrLong bool
}

// Unanswered reads what a dead server has booked. take gives this process's duplicate of a descriptor, as for Restore. What
// cannot be had is left out, and reported by the error: the rest counts.
func (s *State) Unanswered(take func(fd int) (int, error)) (*Unanswered, error) {
	u := &Unanswered{booked: map[uint64]*ledgerSlot{}, nodes: map[uint64]*node{}, rooms: &ledger{requests: -1}, ended: time.Now()}
	l := openLedger(s.ledger())
	u.rooms.head = &ledgerHead{mark: l.head.mark}
	wanted := map[uint64]bool{}
	for unique, i := range l.orphans {
		b := new(ledgerSlot) // by its bytes: the memory is the server's
		copy(unsafe.Slice((*byte)(unsafe.Pointer(b)), ledgerSlotBytes), unsafe.Slice((*byte)(unsafe.Pointer(&l.slots[i])), ledgerSlotBytes))
		u.booked[unique] = b
		if b.phase.Load() == phaseBegun {
			wanted[b.node], wanted[b.newDir] = true, true
		}
	}
	fd, err := unix.FcntlInt(uintptr(s.files[stateRequests]), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return u, fmt.Errorf("requests that were not answered: %w", err)
	}
	u.rooms.requests = fd
	v, err := s.read()
	if err != nil {
		return u, err
	}
	defer v.close()
	u.setxattrLong = v.head.flags&fuse.CAP_SETXATTR_EXT != 0
	for _, n := range v.nodes {
		if !wanted[n.at.id] || n.at.fd < 0 || u.nodes[n.at.id] != nil {
			continue
		}
		fd, err := take(int(n.at.fd))
		if err != nil {
			return u, fmt.Errorf("requests that were not answered: %w", err)
		}
		u.nodes[n.at.id] = &node{id: n.at.id, fd: fd}
	}
	return u, nil
}

// Close gives back what it has taken. It may be called for nil.
func (u *Unanswered) Close() {
	if u == nil {
		return
	}
	for _, n := range u.nodes {
		_ = unix.Close(n.fd) // O_PATH
	}
	clear(u.nodes)
	if u.rooms.requests >= 0 {
		_ = unix.Close(u.rooms.requests) // a memfd
		u.rooms.requests = -1
	}
}

// each calls f for all requests that the server had read and the kernel waits for, where that does not send them again.
func (u *Unanswered) each(device int, f func(request []byte)) error {
	if u.rooms.requests < 0 {
		return nil
	}
	buf, err := mapBuffer(inBytes)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(buf) }()
	return u.rooms.eachUnanswered(device, func(slot uint16, h *fuse.InHeader) error {
		n, err := unix.Pread(u.rooms.requests, buf[:h.Length], int64(slot)*requestRoom+int64(requestStart))
		if err != nil {
			return fmt.Errorf("read request %d: %w", h.Unique, err)
		}
		if n != int(h.Length) {
			return fmt.Errorf("read request %d: %d of %d bytes", h.Unique, n, h.Length)
		}
		(*fuse.InHeader)(unsafe.Pointer(&buf[0])).Unique &^= resentMark
		f(buf[:n])
		return nil
	})
}

// kept gives the answer that is booked of a request; begun: done may find out that it was done.
func (u *Unanswered) kept(h *fuse.InHeader) (answer []byte, begun bool) {
	if u == nil {
		return nil, false
	}
	s := u.booked[h.Unique&^resentMark]
	if s == nil || s.opcode != h.Opcode {
		return nil, false
	}
	switch s.phase.Load() {
	case phaseBegun:
		return nil, true
	case phaseAnswered:
		answer = s.kept(make([]byte, answerBytes), h)
	}
	if givesName(h.Opcode) && len(answer) >= headerSize+int(unsafe.Sizeof(fuse.EntryOut{})) {
		keepAttributes((*fuse.EntryOut)(unsafe.Pointer(&answer[headerSize])))
	}
	return answer, false
}

// done gives the whole answer to a request that was begun, and done; nil: it was not, or may be done twice.
func (u *Unanswered) done(request []byte, description func(handle uint64) (int, bool)) []byte {
	h := part[fuse.InHeader](request)
	s := u.booked[h.Unique&^resentMark]
	if int(h.Opcode) < len(fixed) && len(request) < int(fixed[h.Opcode]) {
		return nil
	}
	if h.Opcode == opWrite {
		return u.appended(request, s, description)
	}
	dir, newDir := u.nodes[s.node], u.nodes[s.newDir]
	if dir == nil || (h.Opcode == opRename || h.Opcode == opRename2) && newDir == nil {
		return nil
	}
	if givesName(h.Opcode) {
		return u.made(request, dir, s)
	}
	switch h.Opcode {
	case opUnlink, opRmdir:
		if s.removed(dir, nameIn(request[fixed[h.Opcode]:])) {
			return answerTo(h)
		}
	case opRename, opRename2:
		return renamed(request, dir, newDir, s)
	case opSetxattr:
		return u.attributeSet(request, dir)
	case opRemovexattr:
		name := nameIn(request[unsafe.Sizeof(*h):])
		if _, err := unix.Getxattr(magic(dir.fd), name, nil); err == unix.ENODATA {
			return answerTo(h)
		}
	}
	return nil
}

// givesName tells which requests give something a name.
func givesName(op uint32) bool {
	switch op {
	case opMknod, opMkdir, opSymlink, opCreate, opLink:
		return true
	}
	return false
}

// keepAttributes lets the kernel keep attributes: open(2) asks for those of what it has made (may_open in fs/namei.c), and nobody would answer.
func keepAttributes(e *fuse.EntryOut) { e.SetAttrTimeout(standInTime) }

// made answers for what makes a name, if it was made. The kernel gets a node that nobody will serve, as long as the layer is there.
func (u *Unanswered) made(request []byte, dir *node, s *ledgerSlot) []byte {
	h := part[fuse.InHeader](request)
	name, kind, id := nameIn(request[fixed[h.Opcode]:]), uint32(0), uint64(madeNodes)|h.Unique&^resentMark
	switch h.Opcode {
	case opMknod:
		in := part[fuse.MknodIn](request)
		if kind = in.Mode & unix.S_IFMT; kind == 0 { // mknod(2)
			kind = unix.S_IFREG
		}
	case opMkdir:
		kind = unix.S_IFDIR
	case opSymlink:
		kind = unix.S_IFLNK
	case opCreate:
		kind = unix.S_IFREG
	case opLink:
		id = part[fuse.LinkIn](request).Oldnodeid
	}
	if h.Opcode == opLink {
		if s.object == (inodeID{}) || at(dir, name) != s.object {
			return nil
		}
	} else if !s.made(u.ended, h, dir, name, kind) {
		return nil
	}
	var st unix.Statx_t
	if err := statxAt(dir.fd, name, &st); err != nil {
		return nil
	}
	entry := fuse.EntryOut{NodeId: id, Generation: 1}
	fillAttr(&entry.Attr, &st)
	keepAttributes(&entry)
	if h.Opcode != opCreate {
		return answerTo(h, bytesOf(&entry))
	}
	open := fuse.OpenOut{Fh: s.handle}
	if open.Fh == 0 { // whoever takes the layer off opens the file by its name
		open.Fh = id
	}
	return answerTo(h, bytesOf(&entry), bytesOf(&open))
}

// madeNodes marks numbers of nodes and handles that no server gives.
const madeNodes = 1 << 62

// renamed answers for a rename that was done.
func renamed(request []byte, dir, newDir *node, s *ledgerSlot) []byte {
	h := part[fuse.InHeader](request)
	flags := uint32(0)
	if h.Opcode == opRename2 {
		flags = part[fuse.RenameIn](request).Flags
	}
	name, newName, ok := namesIn(request[fixed[h.Opcode]:])
	if !ok || !s.moved(dir, name, newDir, newName, flags) {
		return nil
	}
	return answerTo(h)
}

// attributeSet answers for an attribute that was to be made, and has the value.
func (u *Unanswered) attributeSet(request []byte, n *node) []byte {
	in := part[fuse.SetXAttrIn](request)
	if in == nil || in.Flags&unix.XATTR_CREATE == 0 { // else it may be done twice
		return nil
	}
	size := unsafe.Sizeof(*in)
	if !u.setxattrLong {
		size -= unsafe.Sizeof(in.SetXAttrFlags) + unsafe.Sizeof(in.Padding)
	}
	rest := request[size:]
	name := nameIn(rest)
	if len(rest) < len(name)+1+int(in.Size) || !hasAttr(n, name, rest[len(name)+1:][:in.Size]) {
		return nil
	}
	return answerTo(&in.InHeader)
}

// appended answers for a write that has appended. What is missing of it, because a kill has cut it, its caller is told to write.
func (u *Unanswered) appended(request []byte, s *ledgerSlot, description func(handle uint64) (int, bool)) []byte {
	in := part[fuse.WriteIn](request)
	fd, ok := description(in.Fh)
	if !ok {
		return nil
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	h := newHandle(fd, uint32(flags))
	h.node = &node{fd: fd}
	defer h.close()
	if err != nil || flags&unix.O_APPEND == 0 {
		return nil
	}
	n, done := h.appended(s.position, request[unsafe.Sizeof(*in):])
	if !done {
		return nil
	}
	return answerTo(&in.InHeader, bytesOf(&fuse.WriteOut{Size: uint32(n)}))
}
