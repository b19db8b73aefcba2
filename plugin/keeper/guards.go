package keeper

import (
	"fmt"
	"os"
	"strings"

	"github.com/faultgraft/faultgraft/plugin/graft"
)

// Guard is a process of faultgraft that stands by a layer.
type Guard struct {
	PID int
	// StateDir is that of its keeper, as its mount namespace sees it; empty: it cannot be told.
	StateDir string

	own bool // the state directory is the client's
}

// GuardedLayer is a dead layer that was left alone, because somebody stands by it.
type GuardedLayer struct {
	ID, Path string
	PID      int // a process that has it mounted
	Guards   []Guard
}

// String says so to a person, and what can be done should the guards do nothing.
func (l GuardedLayer) String() string {
	var who []string
	kill := "kill -KILL"
	for _, g := range l.Guards {
		of := "of a keeper that cannot be found"
		if g.StateDir != "" {
			of = "of the state directory " + g.StateDir
		}
		who = append(who, fmt.Sprintf("process %d, %s", g.PID, of))
		kill += fmt.Sprintf(" %d", g.PID)
	}
	way := "`faultgraft recover --all` with that state directory, or `" + kill + "` and then `faultgraft recover --orphans`, takes it off"
	return fmt.Sprintf("left alone: the layer of graft %s over %s of process %d. Nobody serves it now, but who stands by it lives (%s), and is about to take it off. Should that hang: %s",
		l.ID, l.Path, l.PID, strings.Join(who, "; "), way)
}

// guards looks for the processes that stand by a layer: keepers, servers, holders and
// swappers of whatever state directory and version. What is in a container can pass
// for one, and keeps its own dead layer so.
func (c *Client) guards(o graft.Orphan) ([]Guard, error) {
	pids, err := o.Guards(func(pid int) bool {
		job, _ := graft.Job(pid)
		return job != ""
	})
	if err != nil {
		return nil, err
	}
	guards := make([]Guard, 0, len(pids))
	for _, pid := range pids {
		g := Guard{PID: pid}
		for at, depth := pid, 0; at > 1 && depth < 4 && g.StateDir == ""; depth++ { // the others descend from a keeper
			_, g.StateDir = graft.Job(at)
			// A container's path may lead to a file system that never answers.
			g.own = g.StateDir != "" && graft.OfTheHost(at) && same(fmt.Sprintf("/proc/%d/root%s", at, g.StateDir), string(c.dir()))
			s, err := graft.ReadStat(at)
			if err != nil {
				break
			}
			at = s.PPID
		}
		guards = append(guards, g)
	}
	return guards, nil
}

// same reports whether both are there, and one.
func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
