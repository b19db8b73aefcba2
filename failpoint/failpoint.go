// Package failpoint names the places between the steps of faultgraft's processes
// at which a test makes one of them fail, stop or die. All are known to the
// package, so that a test can walk them and none is left out.
//
// In a process without the variable At in its environment a point costs one
// comparison and does nothing.
package failpoint

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The environment of a process under test; its children have the same.
const (
	// At is [fail:|kill:|panic:|stop:]POINT[#N]: what happens when a process comes to the point for
	// the Nth time, and from then on: an error (the default, where the step can fail), kill -9
	// of the process, a panic, or a stop of its thread (SIGSTOP), until somebody continues it.
	At = "FAULTGRAFT_TEST_FAIL_AT"
	// Reached is a folder in which a file is made when it happens, see Mark. While it is
	// there, it does not happen again: what comes after a death is to succeed.
	Reached = "FAULTGRAFT_TEST_REACHED"
	// Times is how often it happens before it does not any more, once by default: to so many
	// processes one after the other. The files of the second and later ones end in " 2", " 3" and so on.
	Times = "FAULTGRAFT_TEST_TIMES"
)

// Steps are the points of one job, such as a graft by a keeper.
type Steps struct {
	job   string
	names []string
}

// all are the points of the program, filled in by Of before main begins.
var all []string

// Of registers the steps of a job. It is for package variables. A name that is
// there twice is a mistake of the program, and panics.
func Of(job string, steps ...string) Steps {
	for _, s := range steps {
		name := job + "." + s
		if strings.ContainsAny(name, "/:#") || slices.Contains(all, name) {
			panic("failpoint: " + name)
		}
		all = append(all, name)
	}
	return Steps{job, steps}
}

// All lists the points of the program, in the order of their registration.
func All() []string { return slices.Clone(all) }

// armed is what the environment asks for.
type armed struct {
	how, point string
	reached    int // folder, opened before a thread goes to another mount namespace; -1: there is none
	times      int

	mu   sync.Mutex
	left int
}

var inEnvironment = sync.OnceValue(func() *armed { return parse(os.Getenv(At), os.Getenv(Reached)) })

// parse gives nil for an empty text.
func parse(text, reached string) *armed {
	if text == "" {
		return nil
	}
	point, nth, _ := strings.Cut(text, "#")
	left, err := strconv.Atoi(nth)
	if err != nil {
		left = 1
	}
	how, name, ok := strings.Cut(point, ":")
	if !ok {
		how, name = "fail", point
	}
	if !slices.Contains(all, name) {
		panic(fmt.Sprintf("failpoint: %s=%s: there is no such point", At, text)) // a test would pass that tests nothing
	}
	times, _ := strconv.Atoi(os.Getenv(Times)) // not set: 0
	a := &armed{how: how, point: name, reached: -1, left: max(left, 1), times: max(times, 1)}
	if reached != "" {
		if a.reached, err = unix.Open(reached, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			panic(fmt.Sprintf("failpoint: %s=%s: %v", Reached, reached, err))
		}
	}
	return a
}

// Mark names the file in Reached for what happens at a point, by "fail", "kill",
// "panic" or "stop". It has the process's id.
func Mark(how, point string) string { return MarkOf(how, point, 1) }

// MarkOf is Mark for the n-th time, see Times.
func MarkOf(how, point string, n int) string {
	if n > 1 {
		return fmt.Sprintf("%s %s %d", how, point, n)
	}
	return how + " " + point
}

// Pass is passed by a process between two steps.
func (s Steps) Pass(step string) {
	if a := inEnvironment(); a != nil {
		_ = s.at(step, a) // there is nobody here who could fail; see Err
	}
}

// Err is Pass for a step that can fail: with the error it is to be undone.
func (s Steps) Err(step string) error {
	if a := inEnvironment(); a != nil {
		return s.at(step, a)
	}
	return nil
}

func (s Steps) at(step string, a *armed) error {
	if !slices.Contains(s.names, step) {
		return fmt.Errorf("failpoint: %s has no step %q", s.job, step)
	}
	if s.job+"."+step != a.point || !a.due() {
		return nil
	}
	switch a.how {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "panic":
		panic("asked for before step " + step)
	case "stop":
		// To this thread: it goes no further, while a signal to the process may find another one first.
		_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
		return nil
	}
	return fmt.Errorf("failure asked for before step %s", step)
}

// due counts, and makes the file.
func (a *armed) due() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left--; a.left > 0 {
		return false
	}
	a.left = 1
	if a.reached < 0 {
		return true
	}
	fd, err := -1, error(unix.EEXIST)
	for n := 1; n <= a.times && errors.Is(err, unix.EEXIST); n++ {
		fd, err = unix.Openat(a.reached, MarkOf(a.how, a.point, n), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	}
	if errors.Is(err, unix.EEXIST) {
		return false
	}
	if err == nil {
		_, err = unix.Write(fd, fmt.Appendln(nil, os.Getpid()))
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		panic(fmt.Sprintf("failpoint: %s: %v", Reached, err)) // a test would wait for the file
	}
	return true
}
