package lab

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The roles of faultgraft's processes.
const (
	RoleAgent   = "agent"
	RoleKeeper  = "keeper"
	RoleServer  = "server"
	RoleSwapper = "swapper"
	RoleHolder  = "holder"
	RoleCommand = "command"
)

// OwnProcess is one process of faultgraft in the lab.
type OwnProcess struct {
	*os.Process // by pidfd, so that no other process is meant once it has ended
	Parent      int
	Role        string
	// Target is the first process of the container that it is for; 0: none, or not known.
	Target int
}

// Own lists faultgraft's processes of a role, "" for all, in the order of their pids.
func (l *Lab) Own(role string) ([]OwnProcess, error) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil, err
	}
	all := map[int]OwnProcess{}
	for _, link := range links {
		exe, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(exe, l.dir+"/") || !strings.Contains(filepath.Base(exe), "faultgraft") {
			continue // it ended, is of the kernel, or of others
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		if err != nil {
			return nil, err
		}
		if p, ok := LookAt(pid); ok {
			all[pid] = p
		}
	}
	var out []OwnProcess
	for _, p := range all {
		// servers and swappers are below keepers, which are told their target; a holder is below its server
		for at, ok := p, true; p.Target == 0 && ok; {
			at, ok = all[at.Parent]
			p.Target = at.Target
		}
		if role == "" || p.Role == role {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b OwnProcess) int { return cmp.Compare(a.Pid, b.Pid) })
	return out, nil
}

// LookAt finds out what a process of faultgraft is; false: it has ended, a zombie too.
func LookAt(pid int) (OwnProcess, bool) {
	handle, err := os.FindProcess(pid)
	if err != nil {
		return OwnProcess{}, false
	}
	p := OwnProcess{Process: handle, Role: RoleCommand}
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
	if p.Parent, err = strconv.Atoi(f[1]); err != nil {
		return p, false
	}
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	switch {
	case strings.Contains(string(stat[open+1:end]), "hold"): // it has its server's arguments
		p.Role = RoleHolder
	case strings.HasSuffix(args[0], "10-faultgraft"):
		p.Role = RoleAgent
	case len(args) > 1 && args[1] == "plugin":
		p.Role = RoleAgent
	case len(args) > 1 && args[1] == "keeper":
		p.Role, p.Target = RoleKeeper, targetOf(args)
	case len(args) > 1 && args[1] == "server":
		p.Role = RoleServer
	case len(args) > 1 && args[1] == "swap":
		p.Role = RoleSwapper
	}
	return p, true
}

// targetOf is the process that a keeper's arguments name: `--target pid-PID-START`, or `--inherit` of a server whose keeper died.
func targetOf(args []string) int {
	for _, a := range args[2:] {
		var pid int
		if n, err := fmt.Sscanf(a, "pid-%d-", &pid); err == nil && n == 1 {
			return pid
		}
	}
	return 0
}
