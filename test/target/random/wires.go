package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a swap leaves where it is, but stops and starts again: connections that wait in
// the runtime's poller, an epoll instance of our own, signals, the collector's preemption.

func sleep(us int) { time.Sleep(time.Duration(us) * time.Microsecond) }

type end interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
}

// duplex is one end of two pipes.
type duplex struct{ r, w *os.File }

func (d duplex) Read(b []byte) (int, error)        { return d.r.Read(b) }
func (d duplex) Write(b []byte) (int, error)       { return d.w.Write(b) }
func (d duplex) Close() error                      { return errors.Join(d.r.Close(), d.w.Close()) }
func (d duplex) SetReadDeadline(t time.Time) error { return d.r.SetReadDeadline(t) }

const wires = 4

// wireKinds are ways to connect two goroutines.
var wireKinds = [wires]func(w *worker) (a, b end, err error){
	func(*worker) (end, end, error) { return dialed("tcp", "127.0.0.1:0") },
	func(*worker) (end, end, error) { return dialed("unix", "@"+filepath.Join("faultgraft", randomText())) },
	func(*worker) (end, end, error) {
		r1, w1, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		r2, w2, err := os.Pipe()
		return duplex{r1, w2}, duplex{r2, w1}, err
	},
	func(w *worker) (end, end, error) { return w.throughEpoll() },
}

func randomText() string { return time.Now().Format("150405.000000000") }

func dialed(network, address string) (a, b end, err error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = l.Close() }() // it has served
	type accepted struct {
		c   net.Conn
		err error
	}
	got := make(chan accepted, 1)
	go func() { c, err := l.Accept(); got <- accepted{c, err} }()
	c, err := net.Dial(network, l.Addr().String())
	o := <-got
	return c, o.c, errors.Join(err, o.err)
}

// wire sends messages to and fro, over connections that it makes anew now and then.
func (w *worker) wire(open func(*worker) (a, b end, err error)) {
	for !w.p.over() {
		a, b, err := open(w)
		w.ok(err, "connect")
		var echo sync.WaitGroup
		var failed error
		echo.Add(1)
		go func() {
			defer echo.Done()
			_, failed = io.Copy(struct{ io.Writer }{b}, struct{ io.Reader }{b})
		}()
		for range 50 + w.r.IntN(200) {
			if w.p.over() {
				break
			}
			w.message(a)
			sleep(w.r.IntN(4000))
		}
		w.ok(a.Close(), "close")
		echo.Wait()
		w.ok(errors.Join(failed, b.Close()), "the other end")
	}
}

// message sends some bytes, which come back, and are all that comes.
func (w *worker) message(c end) {
	b, got := w.buf[:1+w.r.IntN(3000)], w.aligned
	w.note(nil, "a message of %d bytes", len(b))
	for i := range b {
		b[i] = byte(w.r.Uint32())
	}
	w.ok(c.SetReadDeadline(time.Now().Add(patience)), "deadline")
	n, err := c.Write(b)
	if err != nil || n != len(b) {
		w.bad(err, "sent %d of %d bytes", n, len(b))
	}
	_, err = io.ReadFull(c, got[:n])
	if err != nil || !bytes.Equal(got[:n], b) {
		w.bad(err, "another message came back")
	}
	if w.one(4) {
		w.ok(c.SetReadDeadline(time.Now().Add(time.Duration(w.r.IntN(5000))*time.Microsecond)), "deadline")
		if n, err := c.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
			w.bad(err, "%d bytes came that nobody has sent", n)
		}
	}
}

// polled is a socket that an epoll instance of our own waits for.
type polled struct {
	fd, epoll int
	until     time.Time
}

func (w *worker) throughEpoll() (a, b end, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]*polled
	for i, fd := range pair {
		ends[i] = &polled{fd: fd}
		if ends[i].epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
			return nil, nil, err
		}
		if err := unix.EpollCtl(ends[i].epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 4711}); err != nil {
			return nil, nil, err
		}
	}
	return ends[0], ends[1], nil
}

func (p *polled) SetReadDeadline(t time.Time) error { p.until = t; return nil }
func (p *polled) Close() error                      { return errors.Join(unix.Close(p.fd), unix.Close(p.epoll)) }
func (p *polled) Write(b []byte) (int, error)       { return unix.Write(p.fd, b) }

func (p *polled) Read(b []byte) (int, error) {
	for {
		var ev [2]unix.EpollEvent
		timeout := -1
		if !p.until.IsZero() {
			timeout = int(max(0, time.Until(p.until)/time.Millisecond))
		}
		n, err := unix.EpollWait(p.epoll, ev[:], timeout)
		switch {
		case errors.Is(err, unix.EINTR): // by preemption
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, os.ErrDeadlineExceeded
		case n != 1 || ev[0].Fd != 4711:
			return 0, errors.New("epoll_wait gives another event")
		}
		got, err := unix.Read(p.fd, b)
		if got == 0 && err == nil {
			err = io.EOF
		}
		return max(got, 0), err
	}
}

// signals sends signals to ourselves; each of them comes.
func (w *worker) signals() {
	kinds := []unix.Signal{unix.SIGUSR1, unix.SIGUSR2, unix.SIGHUP, unix.Signal(40)}
	came := make([]chan os.Signal, len(kinds))
	for i, k := range kinds {
		came[i] = make(chan os.Signal, 1)
		signal.Notify(came[i], k)
	}
	for !w.p.over() {
		i := w.r.IntN(len(kinds))
		w.note(nil, "signal %d", kinds[i])
		w.ok(unix.Kill(os.Getpid(), kinds[i]), "kill")
		t := time.NewTimer(patience)
		select {
		case <-came[i]:
		case <-t.C:
			w.bad(nil, "signal %d did not come", kinds[i])
		}
		t.Stop()
		sleep(w.r.IntN(10000))
	}
}

// collect has the collector stop all goroutines, of which some compute without a call:
// these are preempted by a signal.
func (w *worker) collect() {
	for !w.p.over() {
		w.note(nil, "collect")
		var all sync.WaitGroup
		for range 2 {
			all.Add(1)
			go func() {
				defer all.Done()
				x := uint64(1)
				for range 5_000_000 {
					x ^= x<<13 ^ x>>7
				}
				if x == 0 {
					panic("0")
				}
			}()
		}
		runtime.GC()
		all.Wait()
		sleep(w.r.IntN(100000))
	}
}
