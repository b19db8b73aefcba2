// Command recorder is a target of the soak: a program that does to files what
// must be done exactly once, and knows what must come of it.
//
//	recorder DIR STATUS ERRNO...
//
// Below DIR/clean no call may ever fail, and each must have been carried out
// once: an append that is done twice, a file that is made exclusively and is
// there already, a lock that is lost is told. Below DIR/faulty the errors named
// by ERRNO may come. The file STATUS is replaced several times a second.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Status is what the recorder has seen so far.
type Status struct {
	// Operations were carried out, in both folders.
	Operations int64 `json:"operations"`
	// Faulty counts rounds in DIR/faulty; Faults the errors there, by name.
	Faulty int64            `json:"faulty"`
	Faults map[string]int64 `json:"faults"`
	// Wrong is what must not have been, the first of it.
	Wrong []string `json:"wrong"`
}

type recorder struct {
	dir, status string
	allowed     []string

	mu  sync.Mutex
	now Status
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: recorder DIR STATUS ERRNO...")
		os.Exit(2)
	}
	r := &recorder{dir: os.Args[1], status: os.Args[2], allowed: os.Args[3:], now: Status{Faults: map[string]int64{}, Wrong: []string{}}}
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
		time.Sleep(200 * time.Millisecond)
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
		call, err := r.round(filepath.Join(r.dir, "faulty", fmt.Sprint("f", n%8)), fmt.Appendf(nil, "%064d", n))
		r.mu.Lock()
		r.now.Faulty++
		r.now.Operations++
		r.mu.Unlock()
		if err != nil {
			name := fmt.Sprint(err)
			if e, ok := err.(unix.Errno); ok { // x/sys/unix returns nothing else
				name = unix.ErrnoName(e)
			}
			r.mu.Lock()
			r.now.Faults[name]++
			r.mu.Unlock()
			if !slices.Contains(r.allowed, name) {
				r.wrong(fmt.Sprintf("faulty, round %d: %s: %v", n, call, err))
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (r *recorder) round(path string, content []byte) (call string, err error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return "open", err
	}
	defer func() {
		// close(2) of Linux gives the descriptor back also when it fails
		if cerr := unix.Close(fd); err == nil && cerr != nil {
			call, err = "close", cerr
		}
	}()
	if n, err := unix.Write(fd, content); err != nil || n != len(content) {
		return fmt.Sprintf("write (%d bytes)", n), err
	}
	if err := unix.Fsync(fd); err != nil {
		return "fsync", err
	}
	got := make([]byte, len(content)+1)
	n, err := unix.Pread(fd, got, 0)
	if err == nil && string(got[:n]) != string(content) {
		err = fmt.Errorf("%q instead of %q", got[:n], content)
	}
	return "read", err
}
