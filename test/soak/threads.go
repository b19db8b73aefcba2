package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

const (
	// slowSwap is how long a swapper may be at work until it is written down what it waits for.
	slowSwap = 20 * time.Second
	// stuckSwap is a little less than its keeper waits for it: it is then asked for the stacks of its goroutines, with which it ends.
	stuckSwap = 50 * time.Second
)

// keepThreads writes down what the threads of faultgraft's processes and of the
// containers wait for at this moment, to a file of the run's folder.
func (s *soak) keepThreads(why string) {
	name := filepath.Join(s.dir, "threads-"+time.Now().UTC().Format("150405.000")+".txt")
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n", why)
	var pids []int
	all, err := s.lab.Own("")
	if err != nil {
		fmt.Fprintf(&text, "faultgraft's processes: %v\n", err)
	}
	for _, p := range all {
		pids = append(pids, p.Pid)
	}
	for _, t := range s.targets {
		pids = append(pids, t.first)
		family, err := descendants(t.first)
		if err != nil {
			fmt.Fprintf(&text, "%s: %v\n", t.name, err)
			continue
		}
		pids = append(pids, family[1:]...)
	}
	for _, pid := range pids {
		told := make(chan string, 1)
		go func() { told <- threads(pid) }()
		select {
		case t := <-told:
			text.WriteString(t)
		case <-time.After(5 * time.Second): // what waits for the process's own locks (proc_pid_syscall, fs/proc/base.c) can be stuck with it
			fmt.Fprintf(&text, "process %d: no answer from /proc\n", pid)
		}
	}
	if err := os.WriteFile(name, []byte(text.String()), 0o644); err != nil {
		s.note("  keep what threads wait for: %v", err)
		return
	}
	s.note("  what threads wait for is in %s", name)
}

// threads are the stacks of the threads of a process in the kernel: proc_pid_stack(5).
func threads(pid int) string {
	var b strings.Builder
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(string(text))
	}
	dirs, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid)) // the pattern is right
	for _, d := range dirs {
		fmt.Fprintf(&b, "\n%s: %s\n%s\nsyscall: %s\n", d, strings.ReplaceAll(read(fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00", " "), read(d+"/stack"), read(d+"/syscall"))
		for line := range strings.Lines(read(d + "/status")) {
			if f, _, _ := strings.Cut(line, ":"); f == "Name" || f == "State" || f == "TracerPid" || f == "SigPnd" || f == "ShdPnd" || f == "SigBlk" {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// watchSwapper looks at a swapper that has been at work for that long.
func (s *soak) watchSwapper(p lab.OwnProcess, since time.Duration, told *life) {
	if since > slowSwap && !told.slow {
		told.slow = true
		s.sum.count("swappers at work for longer than " + slowSwap.String())
		s.keepThreads(fmt.Sprintf("swapper %d of target %d has been at work for %s", p.Pid, p.Target, since))
	}
	if since > stuckSwap && !told.stuck {
		told.stuck = true
		s.keepThreads(fmt.Sprintf("swapper %d of target %d has been at work for %s", p.Pid, p.Target, since))
		s.note("  asked swapper %d for its stacks, which it ends with: its keeper's log has them", p.Pid)
		if err := p.Signal(syscall.SIGQUIT); err != nil {
			s.note("  swapper %d: %v", p.Pid, err)
		}
	}
}
