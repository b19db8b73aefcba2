package fusefs

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A thread that has sent a request and waits for a processor, on a busy machine, is in no
// system call for the time being: it is waited for.
func TestCallOfAThreadThatRuns(t *testing.T) {
	tid, end := make(chan int, 1), make(chan struct{})
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	go func() {
		runtime.LockOSThread()
		defer close(end)
		tid <- unix.Gettid()
		for begun := time.Now(); time.Since(begun) < 100*time.Millisecond; {
		}
		_, _ = unix.Read(pipe[0], make([]byte, 1)) // its end
	}()
	thread := uint32(<-tid)
	c, ok := callOf(thread)
	// Go's runtime may have put it to sleep on its way (a futex, for a garbage collection).
	for deadline := time.Now().Add(time.Minute); ok && c.nr != unix.SYS_READ && time.Now().Before(deadline); {
		c, ok = callOf(thread)
	}
	if !ok || c.nr != unix.SYS_READ || c.args[0] != uint64(pipe[0]) {
		t.Errorf("it is in %+v, %v", c, ok)
	}
	for _, fd := range []int{pipe[1], pipe[0]} {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
		if fd == pipe[1] {
			<-end
		}
	}
}
