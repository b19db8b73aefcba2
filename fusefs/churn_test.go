package fusefs_test

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Rules change while many threads work in one tree; every error is one that the
// rules made or that the file system below makes, and nothing hangs.
func TestRulesChangeUnderLoad(t *testing.T) {
	b := over(t, setup{})
	rules := parse(t, "io error=EDQUOT op=all p=10%", "io latency=1ms op=read+lookup+getattr p=5%", "io latency=1h ttl=2h op=write+rename p=1%")
	var workers sync.WaitGroup
	stop := make(chan struct{})
	for w := range 6 {
		workers.Go(func() {
			for i := range 150 {
				name := func(k int) string { return b.path(fmt.Sprint("f", (w+i+k)%7)) }
				errs := []error{
					os.WriteFile(name(0), []byte("data"), 0o644),
					os.Rename(name(0), name(1)),
					os.Link(name(1), name(2)),
					os.Remove(name(2)),
				}
				_, err := os.ReadFile(name(3))
				errs = append(errs, err)
				_, err = os.ReadDir(b.mnt)
				for _, err := range append(errs, err) {
					switch underlying(err) {
					case nil, unix.EDQUOT, unix.ENOENT, unix.EEXIST, unix.EINTR, unix.ESTALE:
					default:
						t.Error(err)
					}
				}
			}
		})
	}
	var setter sync.WaitGroup
	setter.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := b.SetRules(rules[:i%4], time.Now()); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
	workers.Wait()
	close(stop)
	setter.Wait()
	b.rules()
	if got, want := names(t, b.mnt), names(t, b.back); got != want {
		t.Errorf("%s\n%s", got, want)
	}
	must(t, os.WriteFile(b.path("after"), []byte("x"), 0o644))
}

func underlying(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}
