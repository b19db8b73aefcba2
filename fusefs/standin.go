package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Requests that a server has go-fuse decode.
const (
	opSetxattr    = 21
	opRemovexattr = 24
	opReleasedir  = 29
)

// StandIn stands in for the dead server of a layer that is taken off, until its connection is aborted: then calls that wait
// are made again on what lies below. So it leaves them unanswered, and the target waits instead of seeing an error, but for
//   - what the dead server had done and not answered: made again, it would be done twice (see Unanswered);
//   - closes, because a swapper has to close files of the layer before it may abort;
//   - attributes of the root directory: to take a layer off "/" they have to be known;
//   - the swapper's question which handle an open file has;
//   - pages of maps that the kernel writes: after the abort they would be lost.
type StandIn struct {
	// Device is /dev/fuse, Backing what lies under the layer. Both, and Unanswered, are its own.
	Device, Backing int
	// Unanswered is what the dead server had in work; nil: that is not known.
	Unanswered *Unanswered
	// NoResend is that of Options.
	NoResend bool
	// Swapper tells whether a thread is one of a swapper.
	Swapper func(tid int) bool
	// Description gives a duplicate of what an open file of the layer stands for, by its handle; false: it is not known.
	Description func(handle uint64) (fd int, ok bool)
	Logger      *slog.Logger

	// Answers for which what lies below has to be asked: to what the dead server had in work, and to what came later.
	again, later sync.WaitGroup
	// Who asks, by what for. One that waits for a file system that hangs is a thread, and Go ends a process with 10,000 of them
	// (runtime/debug.SetMaxThreads): there may be as many questions for attributes as callers.
	roots, pages, booked crew
}

// How many may ask at a time. What was booked is as much as the dead server had in work, each for another file; pages are as much as the kernel has in
// the background at a time, see MaxBackground.
const (
	rootAskers   = 1
	pageAskers   = 64
	bookedAskers = 1000
)

// Run answers until the connection ends (ENODEV). settled is called, by another goroutine, when all that the dead server had in
// work and had done is answered: before, the connection should not be aborted.
func (s *StandIn) Run(settled func()) {
	settled = sync.OnceFunc(settled)
	defer settled()
	defer func() {
		s.again.Wait()
		s.later.Wait()
		_, _ = unix.Close(s.Device), unix.Close(s.Backing)
		s.Unanswered.Close()
	}()
	if s.NoResend || !s.resend() {
		s.takeUp()
	}
	// A read must have room for the largest request (fuse_dev_do_read in fs/fuse/dev.c), whose pages are there beforehand, see wholeReaders.
	buf, err := unix.Mmap(-1, 0, inBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		s.Logger.Error("stand in for the dead server", "err", err)
		return
	}
	defer func() { _ = unix.Munmap(buf) }()
	asides := &s.again // what comes again comes first
	for {
		if asides == &s.again && !readable(s.Device) {
			asides = &s.later
			go func() {
				s.again.Wait()
				settled()
			}()
		}
		n, err := unix.Read(s.Device, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue // ENOENT: the request was interrupted before it was read
		case err != nil:
			if !errors.Is(err, unix.ENODEV) {
				s.Logger.Error("stand in for the dead server", "err", err)
			}
			return
		}
		s.serve(buf[:n], asides)
	}
}

// resend has the kernel send again what the dead server had in its hands; false: it cannot, before Linux 6.9.
func (s *StandIn) resend() bool {
	_, err := unix.Write(s.Device, ResendNotification())
	return err == nil
}

// takeUp answers what the dead server had in its hands and the kernel does not send again.
func (s *StandIn) takeUp() {
	if s.Unanswered == nil {
		return
	}
	if err := s.Unanswered.each(s.Device, func(request []byte) { s.serve(request, &s.again) }); err != nil && !errors.Is(err, unix.ENODEV) {
		s.Logger.Error("answer what the dead server had in work", "err", err)
	}
}

func (s *StandIn) serve(request []byte, asides *sync.WaitGroup) {
	if len(request) < int(unsafe.Sizeof(fuse.InHeader{})) {
		return
	}
	answer, ask := s.answer(request)
	if !ask {
		s.send(answer)
		return
	}
	own := bytes.Clone(request)
	crew, most := s.askers(own)
	asides.Add(1)
	crew.do(most, func() { // which may hang; closes may not wait for it
		defer asides.Done()
		s.send(s.ask(own))
	})
}

// askers are those for a request, and how many there may be.
func (s *StandIn) askers(request []byte) (c *crew, most int) {
	switch part[fuse.InHeader](request).Opcode {
	case opGetattr:
		return &s.roots, rootAskers
	case opWrite:
		if in := part[fuse.WriteIn](request); in != nil && in.WriteFlags&fuse.WRITE_CACHE != 0 {
			return &s.pages, pageAskers
		}
	}
	return &s.booked, bookedAskers
}

// crew does what may hang.
type crew struct {
	mu      sync.Mutex
	waiting []func()
	working int
}

// do has one of at most so many do it, in its turn.
func (c *crew) do(most int, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = append(c.waiting, f)
	if c.working < most {
		c.working++
		go c.work()
	}
}

func (c *crew) work() {
	for {
		c.mu.Lock()
		if len(c.waiting) == 0 {
			c.working--
			c.mu.Unlock()
			return
		}
		f := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.mu.Unlock()
		f()
	}
}

func (s *StandIn) send(answer []byte) {
	if answer == nil {
		return
	}
	if _, err := unix.Write(s.Device, answer); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		s.Logger.Error("stand in for the dead server", "err", err)
	}
}

// part gives a request as the struct of its kind; nil if it is too short.
func part[T any](request []byte) *T {
	if len(request) < int(unsafe.Sizeof(*new(T))) {
		return nil
	}
	return (*T)(unsafe.Pointer(&request[0]))
}

// answerTo is the answer that a request has succeeded, and bodies of it.
func answerTo(h *fuse.InHeader, bodies ...[]byte) []byte {
	o := fuse.OutHeader{Unique: h.Unique}
	b := bytesOf(&o)
	for _, body := range bodies {
		b = append(b, body...)
	}
	(*fuse.OutHeader)(unsafe.Pointer(&b[0])).Length = uint32(len(b))
	return b
}

// bytesOf copies a struct of the protocol.
func bytesOf[T any](v *T) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))...)
}

// answer gives the whole answer; nil: the request is not answered, or, with ask, that has to be found out.
func (s *StandIn) answer(request []byte) (answer []byte, ask bool) {
	h := part[fuse.InHeader](request)
	answer, begun := s.Unanswered.kept(h)
	if answer != nil {
		return answer, false
	}
	switch h.Opcode {
	case opFlush, opRelease, opReleasedir:
		return answerTo(h), false
	case opIoctl:
		if in := part[fuse.IoctlIn](request); in != nil && in.Cmd == IoctlHandle && s.Swapper(int(h.Pid)) {
			return answerTo(h, bytesOf(&fuse.IoctlOut{}), bytesOf(&in.Fh)), false
		}
	case opGetattr:
		return nil, h.NodeId == fuse.FUSE_ROOT_ID
	case opWrite:
		in := part[fuse.WriteIn](request)
		return nil, begun || in != nil && in.WriteFlags&fuse.WRITE_CACHE != 0
	}
	return nil, begun
}

// ask is answer where what lies below has to be asked.
func (s *StandIn) ask(request []byte) []byte {
	h := part[fuse.InHeader](request)
	switch in := part[fuse.WriteIn](request); {
	case h.Opcode == opGetattr:
		return s.rootAttributes(h)
	case h.Opcode == opWrite && in != nil && in.WriteFlags&fuse.WRITE_CACHE != 0:
		return s.writePages(in, request[unsafe.Sizeof(*in):])
	}
	return s.Unanswered.done(request, s.Description)
}

// writePages writes to the file below. What cannot be written stays with the kernel.
func (s *StandIn) writePages(in *fuse.WriteIn, data []byte) []byte {
	description, ok := s.Description(in.Fh)
	if !ok {
		return nil
	}
	defer func() { _ = unix.Close(description) }() // a duplicate
	// Opened anew, because the description may be one for O_APPEND or O_DIRECT.
	fd, err := unix.Open(magic(description), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		var n int
		n, err = pwrite(fd, data, int64(in.Offset), 0)
		if cerr := unix.Close(fd); err == nil {
			err = cerr
		}
		if err == nil && n < len(data) {
			err = fmt.Errorf("%d bytes were written", n)
		}
	}
	if err != nil {
		s.Logger.Error("write pages of a map in the dead server's stead", "offset", in.Offset, "bytes", len(data), "err", err)
		return nil
	}
	return answerTo(&in.InHeader, bytesOf(&fuse.WriteOut{Size: uint32(len(data))}))
}

// standInTime is how long the kernel may keep attributes: as long as anybody may stand in.
const standInTime = time.Hour

// rootAttributes answers a GETATTR of the root directory; nil: it cannot.
func (s *StandIn) rootAttributes(h *fuse.InHeader) []byte {
	var st unix.Statx_t
	if err := statx(s.Backing, &st); err != nil {
		return nil
	}
	var o fuse.AttrOut
	fillAttr(&o.Attr, &st)
	o.SetTimeout(standInTime)
	return answerTo(h, bytesOf(&o))
}
