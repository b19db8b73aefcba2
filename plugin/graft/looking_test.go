package graft

import (
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A look that waits in the kernel is given up, and the others are taken; it is known until it comes back.
func TestLooksThatWait(t *testing.T) {
	o := onlooker{waiting: map[int]<-chan struct{}{}}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	fd := int(r.Fd()) // blocking
	var waits atomic.Bool
	waits.Store(true)
	kept := o.filter([]int{1, 2, 3}, func(pid int) bool {
		if pid == 2 && waits.Load() {
			_, _ = unix.Read(fd, make([]byte, 1))
		}
		return pid != 3
	})
	if len(kept) != 1 || kept[0] != 1 || len(o.stuck()) != 1 || o.stuck()[0] != 2 {
		t.Fatalf("kept %v, and %v do not come back; want 1, and 2", kept, o.stuck())
	}
	if o.look(2, func() { t.Error("it is looked at again") }) {
		t.Error("the look has come back")
	}
	waits.Store(false)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); len(o.stuck()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it has come back, and is taken for one that has not")
		}
	}
	if kept := o.filter([]int{1, 2, 3}, func(pid int) bool { return pid != 3 }); len(kept) != 2 {
		t.Errorf("kept %v", kept)
	}
}

// Looks that have to wait for a processor, or for Go's scheduler, are not given up, however long that is.
func TestLooksOnABusyMachine(t *testing.T) {
	o := onlooker{waiting: map[int]<-chan struct{}{}}
	var all sync.WaitGroup
	for pid, pause := range []time.Duration{0, 20 * time.Millisecond} { // busy, and seldom chosen
		all.Go(func() {
			if !o.look(pid, func() {
				for end := time.Now().Add(2 * lookPatience); time.Now().Before(end); {
					time.Sleep(pause)
				}
			}) {
				t.Errorf("given up with pauses of %v", pause)
			}
		})
	}
	all.Wait()
}
