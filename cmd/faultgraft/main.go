// Command faultgraft attaches I/O faults to containers that are already
// running. One binary: the user's commands, the node agent, and the small
// processes that stand by a target.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// version is set by the Makefile from git describe.
var version = "devel"

// The main thread stays with the main goroutine: what a process looks like from outside, and in /proc/self, is what its main
// thread is, and goroutines that go to a target's namespaces are to do so on threads that end with them, which a main thread does not.
func init() { runtime.LockOSThread() }

func main() {
	// Its signals are the real runtime's.
	if status, handled := runAsRuntime(context.Background()); handled {
		os.Exit(status)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRootCommand()
	// containerd launches NRI plugins without arguments and says so in the environment (nri/pkg/api).
	if len(os.Args) == 1 && os.Getenv("NRI_PLUGIN_SOCKET") != "" {
		root.SetArgs([]string{"plugin"})
	}
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "faultgraft:", err)
		stop()
		os.Exit(1)
	}
}
