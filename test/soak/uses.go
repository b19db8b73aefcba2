package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

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
