package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one message; a report of 100,000 objects fits.
const maxMessage = 64 << 20

// maxDescriptors is what the kernel takes in one message: SCM_MAX_FD, include/net/scm.h.
const maxDescriptors = 253

// Conn carries calls in one direction over a unix stream socket: one side
// calls, the other serves. A message is a length (uint32, little endian), a
// JSON body of that length, and descriptors that ride on the first byte.
type Conn struct {
	c  *net.UnixConn
	mu sync.Mutex // one call at a time
	// late is how many answers are still to come that nobody waits for any more; guarded by mu.
	late int
}

type envelope struct {
	Method string          `json:"method,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
	Error  string          `json:"error,omitempty"`
	Errno  syscall.Errno   `json:"errno,omitempty"`
	FDs    int             `json:"fds,omitempty"`
}

// Pair makes a connected pair: this process's end, and a file to give to another process.
func Pair() (*Conn, *os.File, error) {
	sv, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	c, err := FromDescriptor(sv[0])
	if err != nil {
		_ = unix.Close(sv[1])
		return nil, nil, err
	}
	return c, os.NewFile(uintptr(sv[1]), "socketpair"), nil
}

// FromDescriptor takes over the descriptor of a connected unix stream socket.
func FromDescriptor(fd int) (*Conn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	nc, err := net.FileConn(f) // duplicates fd
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("socket %d: %w", fd, err)
	}
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		_ = nc.Close()
		return nil, fmt.Errorf("descriptor %d is not a unix socket", fd)
	}
	return &Conn{c: uc}, nil
}

// Close ends the connection; a Call in progress returns an error.
func (c *Conn) Close() error { return c.c.Close() }

// HungUp reports that the other side has closed the connection, or has died.
func (c *Conn) HungUp() bool { return hungUp(c.c) }

func hungUp(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0) // POLLHUP is not asked for, it comes
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}

// RemoteError is an error that the other side returned.
type RemoteError struct {
	Method  string
	Message string
	Errno   syscall.Errno
}

func (e *RemoteError) Error() string { return e.Message }

// Unwrap makes errors.Is work on the errno.
func (e *RemoteError) Unwrap() error {
	if e.Errno != 0 {
		return e.Errno
	}
	return nil
}

// Call sends method with in as its body and fds beside it, and waits for the
// answer, whose body goes to out (nil: not wanted). The descriptors returned
// belong to the caller. fds stay the caller's. A call that gets no answer in time
// may still be carried out; the next one passes its late answer over. So a side that was slow, or stopped for a while, is heard again.
func (c *Conn) Call(ctx context.Context, method string, in, out any, fds ...int) ([]int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline, _ := ctx.Deadline() // the zero time means none
	if err := c.c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.c.SetDeadline(time.Unix(1, 0))
		close(over)
	})
	defer func() {
		if !stop() {
			<-over // not in the middle of the next call
		}
	}()
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	if err := c.send(envelope{Method: method, Body: body}, fds); err != nil {
		return nil, fmt.Errorf("%s: send: %w", method, err)
	}
	e, got, err := c.answer()
	if err != nil {
		if errors.Is(err, errSilent) {
			c.late++
		} else {
			_ = c.c.Close() // what comes next begins in the middle of a message
		}
		switch {
		case ctx.Err() != nil:
			err = ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = context.DeadlineExceeded // the socket's clock fired first
		}
		return nil, fmt.Errorf("%s: no answer: %w", method, err)
	}
	if e.Error != "" {
		CloseAll(got)
		return nil, &RemoteError{Method: method, Message: e.Error, Errno: e.Errno}
	}
	if out != nil {
		if err := json.Unmarshal(e.Body, out); err != nil {
			CloseAll(got)
			return nil, fmt.Errorf("%s: answer: %w", method, err)
		}
	}
	return got, nil
}

// answer waits for the answer to the call that was sent last. They come in the order of the calls.
func (c *Conn) answer() (envelope, []int, error) {
	for {
		e, got, err := c.receive()
		if err != nil || c.late == 0 {
			return e, got, err
		}
		c.late--
		CloseAll(got)
	}
}

// Request is one call as the serving side sees it.
type Request struct {
	Method string
	Body   json.RawMessage
	// FDs belong to the handler: what it does not take over it closes.
	FDs []int
}

// Decode reads the body into v.
func (r *Request) Decode(v any) error {
	if err := json.Unmarshal(r.Body, v); err != nil {
		return fmt.Errorf("%s: %w", r.Method, err)
	}
	return nil
}

// Handler answers one request. The returned descriptors are closed after they were sent.
type Handler func(*Request) (out any, fds []int, err error)

// Serve answers calls until the other side closes the connection (nil) or it breaks.
func (c *Conn) Serve(h Handler) error {
	for {
		e, fds, err := c.receive()
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
			return nil // ECONNRESET: it closed with an answer unread (unix_release_sock in net/unix/af_unix.c)
		}
		if err != nil {
			return err
		}
		out, ofds, err := h(&Request{Method: e.Method, Body: e.Body, FDs: fds})
		var answer envelope
		if err != nil {
			// No descriptor goes with an error: a -1 among them would end the connection (EBADF).
			for _, fd := range ofds {
				if fd >= 0 {
					_ = unix.Close(fd)
				}
			}
			ofds = nil
			answer.Error = err.Error()
			var errno syscall.Errno
			if errors.As(err, &errno) {
				answer.Errno = errno
			}
		} else if answer.Body, err = json.Marshal(out); err != nil {
			answer.Error = err.Error()
		}
		err = c.send(answer, ofds)
		CloseAll(ofds)
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			return nil // the caller gave up; it hung up before the answer
		}
		if err != nil {
			return err
		}
	}
}

func (c *Conn) send(e envelope, fds []int) error {
	if len(fds) > maxDescriptors {
		return fmt.Errorf("%d descriptors in one message: at most %d", len(fds), maxDescriptors)
	}
	e.FDs = len(fds)
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	buf := make([]byte, 4, 4+len(body))
	binary.LittleEndian.PutUint32(buf, uint32(len(body)))
	buf = append(buf, body...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.c.WriteMsgUnix(buf, oob, nil)
	if err != nil {
		return err
	}
	if n < len(buf) {
		if _, err = c.c.Write(buf[n:]); err != nil {
			_ = c.c.Close() // a part of a message is there
		}
	}
	return err
}

// errSilent says that nothing came within the time, not a part of a message.
var errSilent = errors.New("nothing came")

func (c *Conn) receive() (envelope, []int, error) {
	var e envelope
	head := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(maxDescriptors*4))
	n, on, _, _, err := c.c.ReadMsgUnix(head, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errors.Join(errSilent, err)
	}
	if err != nil {
		return e, nil, err
	}
	fds, err := parseRights(oob[:on])
	if err != nil {
		return e, nil, err
	}
	if _, err := io.ReadFull(c.c, head[n:]); err != nil {
		CloseAll(fds)
		return e, nil, err
	}
	size := binary.LittleEndian.Uint32(head)
	if size > maxMessage {
		CloseAll(fds)
		return e, nil, fmt.Errorf("message of %d bytes: at most %d", size, maxMessage)
	}
	// Memory comes with the bytes, not with the number that announces them.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, c.c, int64(size)); err != nil {
		CloseAll(fds)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return e, nil, err
	}
	if err := json.Unmarshal(body.Bytes(), &e); err != nil {
		CloseAll(fds)
		return e, nil, err
	}
	if e.FDs != len(fds) {
		CloseAll(fds)
		return e, nil, fmt.Errorf("%d descriptors of %d arrived: the limit of open files (RLIMIT_NOFILE) is reached", len(fds), e.FDs)
	}
	return e, fds, nil
}

func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range msgs {
		f, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			CloseAll(fds)
			return nil, err
		}
		fds = append(fds, f...)
	}
	return fds, nil
}

// CloseAll closes descriptors that came with a message.
func CloseAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
