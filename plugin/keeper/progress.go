package keeper

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A swap takes as long as there are objects, most of it while the target runs: minutes on a slow machine with many. So a swapper
// is ended for its silence: it has come no further. How far it has come stands in memory that it shares with its keeper; a call would
// have to wait where something hangs, and is not made while a target stands still.
const (
	swapperSilence = 60 * time.Second
	// swapperLongest bounds a whole swap, also of one that always comes on: 100,000 objects take less than a minute on a machine that is not emulated.
	swapperLongest = 30 * time.Minute
	// swapperLook is how often the keeper looks. It counts its looks, so that one that was stopped for a while takes no swapper for one that hangs.
	swapperLook = time.Second
)

// Patience bounds a whole graft, ungraft or change of rules for who asks for one and cannot wait for ever: a swap, and another one that undoes it. The
// keeper gives a swapper up that hangs, and Client a keeper that does; who hangs up before has it undone although it comes on.
const Patience = 2 * swapperLongest

// progress counts what a swapper has done: objects looked at, files made, calls, steps.
type progress struct {
	file *os.File
	mem  []byte
}

func newProgress() (*progress, error) {
	fd, err := unix.MemfdCreate("faultgraft-progress", unix.MFD_CLOEXEC)
	if err == nil {
		if err = unix.Ftruncate(fd, int64(os.Getpagesize())); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("memory to share with the swapper: %w", err)
	}
	return openProgress(fd)
}

// openProgress takes over the descriptor of one.
func openProgress(fd int) (*progress, error) {
	p := &progress{file: os.NewFile(uintptr(fd), "progress")}
	var err error
	if p.mem, err = unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		_ = p.file.Close() // never used
		return nil, fmt.Errorf("map the memory that swapper and keeper share: %w", err)
	}
	return p, nil
}

func (p *progress) counter() *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&p.mem[0])) }

// on says that the swapper has come on. Any thread may.
func (p *progress) on() { p.counter().Add(1) }

func (p *progress) close() {
	_ = unix.Munmap(p.mem)
	_ = p.file.Close() // memory
}

// silenceOfTest shortens swapperSilence.
const silenceOfTest = "FAULTGRAFT_TEST_SWAPPER_SILENCE"

// watch returns why a swapper is to be ended, or nil when over is closed before.
func (p *progress) watch(over <-chan struct{}) error {
	silence, most := swapperSilence, swapperLongest
	if d, err := time.ParseDuration(os.Getenv(silenceOfTest)); err == nil {
		silence = d
	}
	tick := time.NewTicker(swapperLook)
	defer tick.Stop()
	var quiet, whole time.Duration
	for seen := p.counter().Load(); ; whole += swapperLook {
		select {
		case <-over:
			return nil
		case <-tick.C:
		}
		if n := p.counter().Load(); n != seen {
			seen, quiet = n, 0
		} else if quiet += swapperLook; quiet >= silence {
			return fmt.Errorf("the swapper came no further for %v: it hangs, most likely in a file system that does not answer", silence)
		}
		if whole >= most {
			return fmt.Errorf("the swapper did not come to its end within %v, though it came on: there is too much to do, or new objects turn up all the time", most)
		}
	}
}
