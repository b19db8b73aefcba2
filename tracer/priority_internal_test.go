package tracer

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A tracing thread that cannot lend has the priority again that it had.
func TestPriorityIsGivenBack(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its flag
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 5); err != nil {
			t.Error(err)
		}
		had, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Error(err)
			return
		}
		before, err := beRealTime(tracingPriority)
		if err != nil {
			t.Log(err) // not allowed here: nothing is to be given back
			return
		}
		again, err := beRealTime(tracingPriority)
		if err != nil || again.was != nil {
			t.Errorf("once more: %+v, %v", again, err)
		}
		if now, err := unix.SchedGetAttr(0, 0); err != nil || now.Policy != unix.SCHED_FIFO {
			t.Errorf("%+v, %v", now, err)
		}
		if err := before.restore(0); err != nil {
			t.Error(err)
		}
		if now, err := unix.SchedGetAttr(0, 0); err != nil || now.Policy != had.Policy || now.Nice != had.Nice || now.Priority != 0 {
			t.Errorf("%+v, %v; it had %+v", now, err, had)
		}
	}()
	<-done
}
