package main

import (
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// No goroutine gets the main thread, however many want a thread of their own at once: it would take it to a target's namespaces.
func TestMainThreadIsKept(t *testing.T) {
	const many = 64
	tids := make(chan int)
	var all, end sync.WaitGroup
	end.Add(1)
	for range many {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			tids <- unix.Gettid()
			end.Wait()
		})
	}
	for range many {
		if tid := <-tids; tid == os.Getpid() {
			t.Error("a goroutine runs on the main thread")
		}
	}
	end.Done()
	all.Wait()
}
