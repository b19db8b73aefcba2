package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"golang.org/x/sys/unix"
)

// Who asks all keepers of a state directory misses those that do not listen yet: where a keeper was killed, its server or the holder of
// that has another one take the layers off. So whoever says that nothing is left looks at processes, too.

// standing is a process that stands by layers of a state directory, or is about to end or to be followed by one that does.
type standing struct {
	pid, parent int
	job         string // see graft.Job
	listens     bool   // a keeper that can be asked
	alone       bool   // a server without a keeper, with layers that are off, see aloneName
}

// Lingers says of such a server what it waits for.
const Lingers = "it serves on what was taken off and is still used, without rules, and ends with the last user, which `faultgraft events` names"

// aloneName is what a server is called that has no keeper any more, nor will: its layers are off, and it waits for their last users. Whoever looks at
// it from outside sees that by nothing else.
const aloneName = "fgraft-lingers"

// sayAlone gives this server that name.
func (s *server) sayAlone() {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/comm", os.Getpid()), []byte(aloneName), 0); err != nil { // proc_pid_comm(5)
		s.o.Logger.Warn("recover --all will not know that this server has nothing to be taken off", "err", err)
	}
}

const (
	// followWait is how long a killed keeper's successor may take until it listens: its server waits for swappers first.
	followWait = 30 * time.Second
	// lookAgain is between two looks.
	lookAgain = 50 * time.Millisecond
)

// standing lists the keepers, servers and holders of the state directory.
func (c *Client) standing() ([]standing, error) {
	if _, err := os.Stat(string(c.dir())); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	listening, err := c.listening()
	if err != nil {
		return nil, err
	}
	var all []standing
	pids, err := graft.Jobs(func(pid int, job, stateDir string) bool {
		switch job {
		case "keeper", "server":
			return same(fmt.Sprintf("/proc/%d/root%s", pid, stateDir), string(c.dir()))
		case "holder":
			return c.isHolder(pid)
		}
		return false // a swapper is its keeper's, or is waited for by the server
	})
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		s := standing{pid: pid, listens: slices.Contains(listening, pid)}
		stat, err := graft.ReadStat(pid)
		if s.job, _ = graft.Job(pid); s.job == "" || err != nil {
			continue // it has ended
		}
		s.parent, s.alone = stat.PPID, s.job == "server" && stat.Comm == aloneName
		all = append(all, s)
	}
	return all, nil
}

// listening are the keepers that can be asked.
func (c *Client) listening() (pids []int, err error) {
	keys, err := c.dir().keys()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if pid, ok := c.listener(k); ok {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// isHolder tells a holder of this state directory by the log of its keeper, into which all its servers write: its arguments do not say it,
// and its parents may have ended.
func (c *Client) isHolder(pid int) bool {
	log := fmt.Sprintf("/proc/%d/fd/2", pid)
	var is, dir unix.Stat_t
	if unix.Stat(log, &is) != nil || unix.Stat(string(c.dir()), &dir) != nil || is.Dev != dir.Dev {
		return false
	}
	link, err := os.Readlink(log)
	if err != nil {
		return false
	}
	path, err := filepath.Abs(string(c.dir()))
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	return err == nil && strings.HasPrefix(link, stateDir(path).keepers()+"/") // perhaps removed since
}

// unheard are those for which no keeper listens, and one is to come.
func unheard(all []standing) (out []standing) {
	for _, s := range all {
		// A keeper has its server and holders for children, but for one that was started by a server or a holder.
		heard := slices.ContainsFunc(all, func(k standing) bool {
			return k.listens && (k.pid == s.pid || k.pid == s.parent || k.parent == s.pid)
		}) || s.alone
		if !heard && s.job == "holder" { // of a server that has a keeper
			heard = slices.ContainsFunc(all, func(o standing) bool { return o.pid == s.parent && o.job == "server" })
		}
		if !heard {
			out = append(out, s)
		}
	}
	return out
}

// AwaitFollowers waits until all who stand by layers can be asked through a keeper that listens, or have ended. The error names those
// that are not so far in time. alone are servers that go on without a keeper: nothing of theirs is to be taken off.
func (c *Client) AwaitFollowers(ctx context.Context) (alone []int, err error) {
	err = c.awaitStanding(ctx, func(all []standing) ([]standing, time.Duration) {
		alone = nil
		for _, s := range all {
			if s.alone {
				alone = append(alone, s.pid)
			}
		}
		return unheard(all), followWait
	}, "is about to take layers off, or to end, and there is no keeper yet that could be asked for them")
	return alone, err
}

// unheardWait is for who is just about to end, and for a killed keeper's successor where no swapper has to be waited for.
const unheardWait = 10 * time.Second

// Unheard waits for the successors of killed keepers, for a while. The error names the servers and holders that stand by layers of which List
// knows nothing, because no keeper listens that could be asked.
func (c *Client) Unheard(ctx context.Context) error {
	return c.awaitStanding(ctx, func(all []standing) ([]standing, time.Duration) {
		// A keeper that is about to start or to end has no layer.
		return slices.DeleteFunc(unheard(all), func(s standing) bool { return s.job == "keeper" }), unheardWait
	}, "stands by layers that are not listed, because no keeper listens that could be asked for them")
}

// Purge waits for the processes of the state directory to end and removes it. Whoever has taken the layers off is about to.
func (c *Client) Purge(ctx context.Context) error {
	err := c.awaitStanding(ctx, func(all []standing) ([]standing, time.Duration) {
		if slices.ContainsFunc(all, func(s standing) bool { return s.listens || s.alone }) {
			return all, endWait
		}
		return all, followWait
	}, "still runs")
	if err == nil {
		return Purge(string(c.dir()))
	}
	left, lerr := c.List(ctx)
	for _, g := range left {
		if g.State == StateLingering {
			err = fmt.Errorf("%w; graft %s: %s", err, g.ID, g.Reason)
		}
	}
	return errors.Join(fmt.Errorf("purge %s: %w", c.dir(), err), lerr)
}

// awaitStanding waits until nobody is left, for as long as left says.
func (c *Client) awaitStanding(ctx context.Context, left func([]standing) ([]standing, time.Duration), complaint string) error {
	for begin := time.Now(); ; {
		all, err := c.standing()
		if err != nil {
			return err
		}
		who, patience := left(all)
		if len(who) == 0 {
			return nil
		}
		if time.Since(begin) > patience {
			var errs []error
			for _, s := range who {
				errs = append(errs, fmt.Errorf("process %d (%s) %s: %s", s.pid, s.job, complaint, c.why(s)))
			}
			return errors.Join(errs...)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookAgain):
		}
	}
}

// why says what a process waits for, or where that is said.
func (c *Client) why(s standing) string {
	why := whyStill(s.pid)
	switch {
	case s.alone:
		return Lingers
	case s.job == "keeper" || why != hangs:
		return why
	}
	why = "it has another keeper started again and again, until one takes the layers off, and the target works on without faults"
	if s.job == "holder" {
		why = "it has a keeper started that takes the layers off"
	}
	if log, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", s.pid)); err == nil && strings.HasPrefix(log, "/") {
		why += ". " + log + " has what they say"
	}
	return why
}
