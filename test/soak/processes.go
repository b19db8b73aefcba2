package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The roles of faultgraft's processes.
const (
	agentRole  = "agent"
	keeperRole = "keeper"
	server     = "server"
	swapper    = "swapper"
	holder     = "holder"
	command    = "command"
)

// process is one process of faultgraft in the lab.
type process struct {
	*os.Process // by pidfd, so that no other process is meant once it has ended
	parent      int
	role        string
	// target is the first process of the container that it is for; 0: none, or not known.
	target int
}

// processes lists those of a role, "" for all, in the order of their pids.
func (s *soak) processes(role string) ([]process, error) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil, err
	}
	all := map[int]process{}
	for _, l := range links {
		exe, err := os.Readlink(l)
		if err != nil || !strings.HasPrefix(exe, s.lab.Dir()+"/") || !strings.Contains(filepath.Base(exe), "faultgraft") {
			continue // it ended, is of the kernel, or of others
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(l)))
		if err != nil {
			return nil, err
		}
		if p, ok := look(pid); ok {
			all[pid] = p
		}
	}
	var out []process
	for _, p := range all {
		// servers and swappers are below keepers, which are told their target; a holder is below its server
		for at, ok := p, true; p.target == 0 && ok; {
			at, ok = all[at.parent]
			p.target = at.target
		}
		if role == "" || p.role == role {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b process) int { return cmp.Compare(a.Pid, b.Pid) })
	return out, nil
}

// look finds out what a process of faultgraft is; false: it has ended.
func look(pid int) (process, bool) {
	handle, err := os.FindProcess(pid)
	if err != nil {
		return process{}, false
	}
	p := process{Process: handle, role: command}
	dir := fmt.Sprintf("/proc/%d/", pid)
	line, err := os.ReadFile(dir + "cmdline")
	if err != nil {
		return p, false
	}
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return p, false
	}
	// pid (comm) state ppid …: proc_pid_stat(5)
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	f := strings.Fields(string(stat[end+1:]))
	if f[0] == "Z" || f[0] == "X" {
		return p, false
	}
	if p.parent, err = strconv.Atoi(f[1]); err != nil {
		return p, false
	}
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	switch {
	case strings.Contains(string(stat[open+1:end]), "hold"): // it has its server's arguments
		p.role = holder
	case strings.HasSuffix(args[0], "10-faultgraft"):
		p.role = agentRole
	case len(args) > 1 && args[1] == "plugin":
		p.role = agentRole
	case len(args) > 1 && args[1] == "keeper":
		p.role, p.target = keeperRole, targetOf(args)
	case len(args) > 1 && args[1] == "server":
		p.role = server
	case len(args) > 1 && args[1] == "swap":
		p.role = swapper
	}
	return p, true
}

// targetOf is the process that a keeper's arguments name: `--target JSON`, or what a server whose keeper died hands to the next.
func targetOf(args []string) int {
	for _, a := range args[2:] {
		_, a, _ = strings.Cut(a, "{")
		var t struct {
			PID    int `json:"pid"`
			Target struct {
				PID int `json:"pid"`
			} `json:"target"`
		}
		if json.Unmarshal([]byte("{"+a), &t) == nil && t.PID+t.Target.PID > 0 {
			return t.PID + t.Target.PID
		}
	}
	return 0
}

// use is what a process takes of the machine.
type use struct {
	// memory is its anonymous resident memory, KiB; descriptors is how many it has open.
	memory, descriptors int
}

// uses looks at a process; false: it has ended.
func uses(pid int) (use, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return use{}, false
	}
	var u use
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			if u.memory, err = strconv.Atoi(strings.Fields(v)[0]); err != nil {
				return use{}, false
			}
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	u.descriptors = len(fds)
	return u, err == nil
}

// mountinfo reads a process's mounts, one line each.
func mountinfo(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	return strings.Split(strings.TrimSpace(string(b)), "\n"), err
}
