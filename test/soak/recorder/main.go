// Command recorder is a target of the soak: a program that does to files what
// must be done exactly once, and knows what must come of it.
//
//	recorder DIR STATUS ERRNO...
//
// Below DIR/clean no call may ever fail, and each must have been carried out
// once: an append that is done twice, a file that is made exclusively and is
// there already, a lock that is lost is told. Below DIR/faulty the errors named
// by ERRNO may come. The file STATUS is replaced several times a second; see package recorded.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/test/soak/recorded"
	"golang.org/x/sys/unix"
)

type recorder struct {
	dir, status string
	allowed     []string

	mu  sync.Mutex
	now recorded.Status
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: recorder DIR STATUS ERRNO...")
		os.Exit(2)
	}
	r := &recorder{dir: os.Args[1], status: os.Args[2], allowed: os.Args[3:], now: recorded.Status{Faults: map[string]uint64{}, Wrong: []string{}}}
	for _, d := range []string{"clean", "faulty"} {
		if err := os.MkdirAll(filepath.Join(r.dir, d), 0o755); err != nil {
			fmt.Fprintln(os.Stderr, "recorder:", err)
			os.Exit(1)
		}
	}
	for name, round := range map[string]func(n int) error{
		"append": r.appender(), "names": r.names, "map": r.mapped(), "unlinked": r.unlinked, "locks": r.locks(),
	} {
		go r.again(name, round)
	}
	go r.faulty()
	for {
		if err := r.tell(); err != nil {
			fmt.Fprintln(os.Stderr, "recorder:", err)
			os.Exit(1)
		}
		time.Sleep(recorded.Interval)
	}
}

// again does a round after the other, until one is wrong.
func (r *recorder) again(name string, round func(n int) error) {
	for n := 0; ; n++ {
		if err := round(n); err != nil {
			r.wrong(fmt.Sprintf("%s, round %d: %v", name, n, err))
			return
		}
		r.done()
		time.Sleep(5 * time.Millisecond)
	}
}

func (r *recorder) done() {
	r.mu.Lock()
	r.now.Operations++
	r.mu.Unlock()
}

func (r *recorder) wrong(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.now.Wrong) < 10 {
		r.now.Wrong = append(r.now.Wrong, time.Now().UTC().Format("15:04:05.000 ")+what)
	}
}

// tell replaces the status file.
func (r *recorder) tell() error {
	r.mu.Lock()
	r.now.MadeAt = recorded.Now()
	b, err := json.Marshal(r.now)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.status+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(r.status+".new", r.status)
}

// faulty writes, syncs and reads a small file where faults may come.
func (r *recorder) faulty() {
	for n := 0; ; n++ {
		call, made, err := round(filepath.Join(r.dir, "faulty", fmt.Sprint("f", n%8)), fmt.Appendf(nil, "%064d", n))
		name := fmt.Sprint(err)
		if e, ok := err.(unix.Errno); ok { // x/sys/unix returns nothing else
			name = unix.ErrnoName(e)
		}
		r.mu.Lock()
		r.now.Faulty++
		r.now.Operations++
		if err != nil {
			r.now.Faults[name]++
			r.now.FaultyCall = made
		}
		r.mu.Unlock()
		if err != nil && !slices.Contains(r.allowed, name) {
			r.wrong(fmt.Sprintf("faulty, round %d: %s: %v", n, call, err))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// round tells which call failed, and when it was made.
func round(path string, content []byte) (call string, made recorded.Time, err error) {
	made = recorded.Now()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return "open", made, err
	}
	defer func() {
		closed := recorded.Now()
		// close(2) of Linux gives the descriptor back also when it fails
		if cerr := unix.Close(fd); err == nil && cerr != nil {
			call, made, err = "close", closed, cerr
		}
	}()
	made = recorded.Now()
	if n, err := unix.Write(fd, content); err != nil || n != len(content) {
		return fmt.Sprintf("write (%d bytes)", n), made, err
	}
	made = recorded.Now()
	if err := unix.Fsync(fd); err != nil {
		return "fsync", made, err
	}
	got := make([]byte, len(content)+1)
	made = recorded.Now()
	n, err := unix.Pread(fd, got, 0)
	if err == nil && string(got[:n]) != string(content) {
		err = fmt.Errorf("%q instead of %q", got[:n], content)
	}
	return "read", made, err
}
