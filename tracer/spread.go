package tracer

// spreadFrom is from how many calls on it pays to wake another OS thread for half of them.
const spreadFrom = 128

// spread calls do for each number below n, on two OS threads where there are many: the
// processor that the target had is idle while it stands. do makes calls that need not come from
// the tracing thread, and two of it run at a time.
func spread(n int, do func(i int)) {
	if n < spreadFrom {
		for i := range n {
			do(i)
		}
		return
	}
	half, done := n/2, make(chan struct{})
	go func() {
		defer close(done)
		for i := half; i < n; i++ {
			do(i)
		}
	}()
	for i := range half {
		do(i)
	}
	<-done
}
