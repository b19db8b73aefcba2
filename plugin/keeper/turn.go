package keeper

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Each keeper swaps by itself, and hundreds may be asked at once. A swap keeps a processor busy, some of it with a real-time priority: with more
// of them than processors none would be done earlier, and keepers would have no time to say that they run, nor processes to start. So
// they take turns, over all keepers of a state directory.

// turns is how many swaps there may be at once, and for how long one waits for its turn.
type turns struct {
	folder string
	most   int
	// patience ends a wait: a swap that hangs, or several, holds others up that long and no longer.
	patience time.Duration
}

// turnPatience is several swaps of a target as they usually are.
const turnPatience = 20 * time.Second

func (d stateDir) turns() turns {
	return turns{filepath.Join(string(d), "turns"), max(4, 2*runtime.NumCPU()), turnPatience}
}

// take waits for a turn; back gives it back, as the end of the process does. Without a place to note turns there are none.
func (t turns) take() (back func()) {
	for end := time.Now().Add(t.patience); ; time.Sleep(20 * time.Millisecond) {
		for n := range t.most {
			f, err := t.note(n)
			if err != nil {
				return func() {}
			}
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			if err == nil {
				return func() { _ = f.Close() }
			}
			_ = f.Close()
			if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
				return func() {}
			}
		}
		if time.Now().After(end) {
			return func() {}
		}
	}
}

// note opens the file of a turn.
func (t turns) note(n int) (*os.File, error) {
	name := filepath.Join(t.folder, strconv.Itoa(n))
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.Mkdir(t.folder, 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			f, err = os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		}
	}
	return f, err
}
