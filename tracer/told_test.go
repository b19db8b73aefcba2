package tracer_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A target that does what it is told, in the middle of a swap too, is this test binary:
// each line of its input is a word with arguments, and is answered with "ok", a result or
// an error.

const toldEnv = "TRACER_TEST_TOLD"

// told starts one; its descriptors from 100 on, and its maps, are for the test.
func told(t *testing.T) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return start(t, "/usr/bin/env", toldEnv+"=1", "GODEBUG=asyncpreemptoff=1", exe)
}

// ask gives the answer of a target that is told something.
func (p *process) ask(format string, args ...any) string {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		p.t.Fatal(err)
	}
	return p.read()
}

// tells wants "ok".
func (p *process) tells(format string, args ...any) {
	p.t.Helper()
	if got := p.ask(format, args...); got != "ok" {
		p.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), got)
	}
}

// beTold is the target.
func beTold() {
	runtime.LockOSThread() // no thread that is apart is the first one
	t := &toldTarget{maps: map[string][]byte{}}
	time.AfterFunc(5*time.Minute, func() { os.Exit(1) })
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		answer, err := t.do(strings.Fields(in.Text()))
		switch {
		case err != nil:
			answer = err.Error()
		case answer == "":
			answer = "ok"
		}
		fmt.Println(answer)
	}
}

type toldTarget struct{ maps map[string][]byte }

var toldWords = map[string]int{
	"rdonly": unix.O_RDONLY, "wronly": unix.O_WRONLY, "rdwr": unix.O_RDWR,
	"none": unix.PROT_NONE, "read": unix.PROT_READ, "write": unix.PROT_READ | unix.PROT_WRITE,
	"shared": unix.MAP_SHARED, "private": unix.MAP_PRIVATE,
}

// number is a word's number, or what it says.
func number(word string) (n int) {
	if n, known := toldWords[word]; known {
		return n
	}
	_, _ = fmt.Sscan(word, &n) // 0 for one that is none
	return n
}

func (t *toldTarget) do(w []string) (answer string, err error) {
	at := func(i int) int { return number(w[i]) }
	switch w[0] {
	case "open": // FD PATH MODE
		fd, err := unix.Open(w[2], at(3)|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer func() { _ = unix.Close(fd) }()
		return "", unix.Dup3(fd, at(1), unix.O_CLOEXEC)
	case "dup": // FD TO
		return "", unix.Dup3(at(1), at(2), unix.O_CLOEXEC)
	case "close": // FD
		return "", unix.Close(at(1))
	case "text": // FD
		b := make([]byte, 100)
		n, err := unix.Pread(at(1), b, 0)
		return "text " + string(b[:max(n, 0)]), err
	case "lock": // FD, the whole file
		return "", unix.FcntlFlock(uintptr(at(1)), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	case "chdir": // PATH
		return "", unix.Chdir(w[1])
	case "apart": // PATH: a thread with a working directory of its own
		ready := make(chan error)
		go func() {
			runtime.LockOSThread()
			ready <- errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chdir(w[1]))
			select {}
		}()
		return "", <-ready
	case "getwd":
		return unix.Getwd()
	case "map": // KEY FD PAGES PROT SHARED, at the place where KEY was before
		flags, old := at(5), t.maps[w[1]]
		var hint unsafe.Pointer
		if old != nil {
			hint, flags = unsafe.Pointer(&old[:1][0]), flags|unix.MAP_FIXED
		}
		size := uintptr(at(3) * os.Getpagesize())
		p, err := unix.MmapPtr(at(2), 0, hint, size, at(4), flags)
		if err == nil {
			t.maps[w[1]] = unsafe.Slice((*byte)(p), size)
		}
		return "", err
	case "unmap": // KEY, of which the place is kept
		m := t.maps[w[1]]
		return "", unix.MunmapPtr(unsafe.Pointer(&m[0]), uintptr(len(m)))
	case "mlock": // KEY
		err := unix.Mlock(t.maps[w[1]])
		if err == unix.ENOMEM || err == unix.EAGAIN { // what cannot be brought in is locked all the same
			err = nil
		}
		return "", err
	case "mprotect": // KEY PROT
		return "", unix.Mprotect(t.maps[w[1]], at(2))
	case "at": // KEY
		return fmt.Sprintf("%x", &t.maps[w[1]][0]), nil
	}
	return "", fmt.Errorf("told %q", w)
}
