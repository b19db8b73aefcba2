package main

import (
	"bufio"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Programs that are started: by os/exec, which inherit what is not close-on-exec, and
// lodgers, started by syscall.ForkExec with descriptors of a file, which they keep for
// as long as they live and do with what they are told.

// startProgram: a program that is started has what is not close-on-exec.
func (w *worker) startProgram(f *file, d *desc) {
	s, offset, first := w.slot(d), int64(-1), -1
	if !s.cloexec {
		offset = d.off
	}
	if d.reads() && f.size > 0 && d.flags&unix.O_DIRECT == 0 {
		first = int(f.data[0])
	}
	w.note(f, "a program is started with %d, close-on-exec %v", s.fd, s.cloexec)
	out, err := said(exec.Command("/proc/self/exe", "started", fmt.Sprint(s.fd), fmt.Sprint(offset), fmt.Sprint(first)))
	w.ok(err, "a program that was started: %s", out)
}

// said is exec.Cmd.CombinedOutput with a pipe above all slots. In the child syscall.forkExec puts descriptors of its own, which
// are close-on-exec, at the numbers after the highest one that it is given, whatever is open there (forkAndExecInChild1, "pass 1").
func said(c *exec.Cmd) (out []byte, err error) {
	from, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = from.Close() }() // only read
	above, err := fcntl(int(to.Fd()), unix.F_DUPFD_CLOEXEC, aboveSlots)
	_ = to.Close() // nothing was written
	if err != nil {
		return nil, err
	}
	pipe := os.NewFile(uintptr(above), "pipe")
	c.Stdout, c.Stderr = pipe, pipe
	err = c.Start()
	_ = pipe.Close() // nor here
	if err != nil {
		return nil, err
	}
	out, err = io.ReadAll(from)
	return out, errors.Join(err, c.Wait())
}

// started is that program.
func started(args []string) int {
	var fd, first int
	var want int64
	if _, err := fmt.Sscan(strings.Join(args, " "), &fd, &want, &first); err != nil {
		fmt.Println(err)
		return 2
	}
	// A number that is free at the start may be the runtime's by now: its epoll instance, its eventfd.
	got, err := unix.Seek(fd, 0, 1)
	if link, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd)); want < 0 && strings.HasPrefix(link, "/") && !strings.HasPrefix(link, "/dev/") && !strings.HasPrefix(link, "/sys/") {
		fmt.Printf("a descriptor that is close-on-exec is there: %s", link)
		return 2
	}
	if want < 0 {
		return 0
	}
	if got != want || err != nil {
		fmt.Printf("offset %d, not %d: %v; %s", got, want, err, later(fd))
		return 2
	}
	b := make([]byte, 1)
	if n, err := unix.Pread(fd, b, 0); first >= 0 && (n != 1 || int(b[0]) != first) {
		fmt.Printf("it begins with %#x, not %#x: %v", b[0], first, err)
		return 3
	}
	return 0
}

// later tells whether a descriptor that was not right is so for good, and what there is beside it.
func later(fd int) string {
	time.Sleep(100 * time.Millisecond)
	at, err := unix.Seek(fd, 0, 1)
	list, _ := os.ReadDir("/proc/self/fd") // no more than what else there is to say
	var have []string
	for _, e := range list {
		link, _ := os.Readlink("/proc/self/fd/" + e.Name())
		have = append(have, e.Name()+" "+link)
	}
	return fmt.Sprintf("100 ms later %d: %v; it has %s", at, err, strings.Join(have, ", "))
}

const (
	lodgers = 2
	guests  = 4 // descriptors of a lodger
)

// lodger is a process that has descriptions in common with us.
type lodger struct {
	mu      sync.Mutex
	pid     int // 0: none
	to      *os.File
	from    *os.File
	answers *bufio.Reader
	file    *file
	guests  []guest // descriptor 3 is the first
}

// guest is a description of the file; life says whether it is the same one still.
type guest struct {
	desc *desc
	life int
}

// takeIn starts a lodger with descriptions of a file, in the place of one that was there.
func (w *worker) takeIn(f *file) {
	l := &w.p.lodgers[w.r.IntN(lodgers)]
	if !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	l.end(w)
	in, to, err := os.Pipe()
	w.ok(err, "pipe")
	from, out, err := os.Pipe()
	w.ok(err, "pipe")
	l.to, l.from, l.answers, l.file, l.guests = to, from, bufio.NewReader(from), f, nil
	attr := &syscall.ProcAttr{Files: []uintptr{in.Fd(), out.Fd(), 2}, Env: os.Environ()}
	for i := range f.descs {
		if d := &f.descs[i]; d.live && len(l.guests) < guests {
			l.guests = append(l.guests, guest{d, d.life})
			attr.Files = append(attr.Files, uintptr(w.slot(d).fd))
		}
	}
	w.note(f, "a lodger with %d descriptors", len(l.guests))
	l.pid, err = syscall.ForkExec("/proc/self/exe", []string{"lodger", "lodger"}, attr)
	w.ok(err, "start a lodger")
	w.ok(in.Close(), "pipe")
	w.ok(out.Close(), "pipe")
}

// end ends a lodger.
func (l *lodger) end(w *worker) {
	if l.pid == 0 {
		return
	}
	w.ok(l.to.Close(), "end a lodger")
	ws := syscall.WaitStatus(0)
	w.ok(again(func() error { _, err := syscall.Wait4(l.pid, &ws, 0, nil); return err }), "wait for a lodger")
	if ws != 0 {
		w.bad(nil, "a lodger ends with %#x", ws)
	}
	w.ok(l.from.Close(), "end a lodger")
	l.pid = 0
}

// ask says something to a lodger, and compares its answer.
func (l *lodger) ask(w *worker, want, format string, args ...any) {
	w.ok(l.from.SetReadDeadline(time.Now().Add(patience)), "deadline")
	_, err := fmt.Fprintf(l.to, format+"\n", args...)
	w.ok(err, "a lodger does not listen")
	got, err := l.answers.ReadString('\n')
	w.ok(err, "a lodger does not answer")
	if got = strings.TrimSpace(got); got != want {
		w.bad(nil, "a lodger says to %s: %s, not %s", fmt.Sprintf(format, args...), got, want)
	}
}

// askLodger has a lodger move or compare what it has in common with us.
func (w *worker) askLodger(f *file) {
	l := &w.p.lodgers[w.r.IntN(lodgers)]
	if !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	if l.pid == 0 || l.file != f || len(l.guests) == 0 {
		return
	}
	i := w.r.IntN(len(l.guests))
	d, fd := l.guests[i].desc, i+3
	if !d.live || d.life != l.guests[i].life || d.flags&unix.O_PATH != 0 {
		return
	}
	switch w.r.IntN(4) {
	case 0:
		w.note(f, "the lodger %d compares the offset of %d", l.pid, fd)
		l.ask(w, fmt.Sprint(d.off), "offset %d", fd)
	case 1:
		to := int64(w.r.IntN(maxSize))
		w.note(f, "the lodger %d moves the offset of %d to %d", l.pid, fd, to)
		l.ask(w, fmt.Sprint(to), "seek %d %d", fd, to)
		d.off = to
	case 2:
		if !d.reads() || d.flags&unix.O_DIRECT != 0 {
			return
		}
		w.note(f, "the lodger %d reads %d", l.pid, fd)
		l.ask(w, fmt.Sprint(f.size, sum(f.data[:f.size])), "sum %d", fd)
	default:
		kind, b := byte(1+w.r.IntN(2)), w.r.IntN(blocks)
		there := conflicts(kind, f.posix[b]) || f.inTheWay(nil, b, b+1, kind)
		w.note(f, "the lodger %d asks for a lock of %d, kind %d, block %d", l.pid, fd, kind, b)
		l.ask(w, fmt.Sprint(there), "lock %d %d %d", fd, kind, b)
		shared, exclusive := false, false
		for i := range f.descs {
			if o := &f.descs[i]; o.live {
				shared, exclusive = shared || o.flocked != 0, exclusive || o.flocked == unix.LOCK_EX
			}
		}
		l.ask(w, fmt.Sprint(shared, exclusive), "flock %d", fd)
	}
}

func sum(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b) // never fails
	return h.Sum64()
}

// lodge is the lodger.
func lodge() int {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var word string
		var fd int
		var a, b int64
		n, _ := fmt.Sscan(in.Text(), &word, &fd, &a, &b) // as many as there are
		if n < 2 {
			return 2
		}
		fmt.Println(lodged(word, fd, a, b))
	}
	return 0
}

// lodged does what a lodger is told.
func lodged(word string, fd int, a, b int64) string {
	var answer string
	var err error
	switch word {
	case "offset":
		var off int64
		off, err = unix.Seek(fd, 0, 1)
		answer = fmt.Sprint(off)
	case "seek":
		var off int64
		off, err = unix.Seek(fd, a, 0)
		answer = fmt.Sprint(off)
	case "sum":
		data := make([]byte, maxSize)
		var n int
		err = again(func() error { n, err = unix.Pread(fd, data, 0); return err })
		answer = fmt.Sprint(n, sum(data[:max(n, 0)]))
	case "lock":
		l := unix.Flock_t{Type: lockTypes[a], Start: b * block, Len: block}
		err = again(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &l) })
		answer = fmt.Sprint(l.Type != unix.F_UNLCK)
	case "flock":
		answer, err = flocks(fd)
	}
	if err != nil {
		return "error " + err.Error()
	}
	return answer
}

// flocks asks whether anybody has a lock, and an exclusive one.
func flocks(fd int) (string, error) {
	other, err := openat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", fd), unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(other) }() // nothing was written
	var held [2]bool
	for i, kind := range []int{unix.LOCK_EX, unix.LOCK_SH} {
		err := again(func() error { return unix.Flock(other, kind|unix.LOCK_NB) })
		if held[i] = is(err, unix.EWOULDBLOCK); !held[i] && err != nil {
			return "", err
		}
	}
	// FUSE does not wait for the release at a close
	return fmt.Sprint(held[0], held[1]), unix.Flock(other, unix.LOCK_UN)
}
