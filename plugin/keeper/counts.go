package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/fusefs"
)

// FaultCount is how often the rules of a graft did one thing to one kind of
// operation, from the graft's beginning: rules that were changed meanwhile are in
// it. It comes from counters that are stepped before the operation is answered,
// not from the event log, which can lose events.
type FaultCount struct {
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule"`
	// Op is the operation, for a kernel fault its hook point.
	Op     string `json:"op"`
	Action string `json:"action,omitempty"`
	// Errno is what the operations failed with, empty if they did not.
	Errno string `json:"errno,omitempty"`
	Count uint64 `json:"count"`
	// DelayNs is how long the operations were made to wait, nanoseconds in all.
	DelayNs time.Duration `json:"delayNs,omitempty"`
}

func faultCounts(rows []fusefs.FaultCount) []FaultCount {
	out := make([]FaultCount, 0, len(rows))
	for _, r := range rows {
		out = append(out, FaultCount{Policy: r.Policy, Rule: r.Rule, Op: r.Op.String(), Action: string(r.Action), Errno: r.Errno, Count: r.N, DelayNs: r.Delay})
	}
	return out
}

// endedVersion is the form of the file of an EndedGraft.
const endedVersion = 1

// EndedGraft is what a graft did that is over. It waits in the state directory
// until the agent adds it to the node's counters.
type EndedGraft struct {
	// Version is endedVersion; 0 from before it was written down, of the same form.
	Version int          `json:"version,omitempty"`
	Graft   string       `json:"graft"`
	Target  Target       `json:"target"`
	Ended   time.Time    `json:"ended"`
	Faults  []FaultCount `json:"faults"`
}

// maxEnded bounds how many of them wait on a node without an agent.
const maxEnded = 10000

func (d stateDir) ended() string             { return filepath.Join(string(d), "ended") }
func (d stateDir) endedFile(g string) string { return filepath.Join(d.ended(), g+".json") }

// saveEnded leaves what a graft did for the agent. Where a file is already it
// stays: the server's is exact, that of the keeper whose server died is not.
func (d stateDir) saveEnded(e EndedGraft) error {
	if len(e.Faults) == 0 {
		return nil
	}
	fail := func(err error) error {
		return fmt.Errorf("keep the counts of graft %s for the agent: %w", e.Graft, err)
	}
	if err := os.MkdirAll(d.ended(), 0o700); err != nil {
		return fail(err)
	}
	if names, err := readNames(d.ended()); err != nil || len(names) >= maxEnded {
		return fail(errors.Join(err, fmt.Errorf("%d files wait in %s for an agent", len(names), d.ended())))
	}
	// The agent has no use for the labels.
	e.Version, e.Target.Labels = endedVersion, nil
	b, err := json.Marshal(e)
	if err != nil {
		return fail(err)
	}
	f, err := os.CreateTemp(d.ended(), ".new-*")
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Link(f.Name(), d.endedFile(e.Graft))
	}
	if rerr := os.Remove(f.Name()); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fail(err)
	}
	return nil
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	return f.Readdirnames(-1)
}

// Ended reads what grafts did that are over; Counted has them forgotten. What
// cannot be read is told beside the others.
func (c *Client) Ended() ([]EndedGraft, error) {
	d := c.dir()
	names, err := readNames(d.ended())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("counts of ended grafts: %w", err)
	}
	var out []EndedGraft
	var errs []error
	for _, n := range names {
		id, ok := strings.CutSuffix(n, ".json")
		if !ok || strings.HasPrefix(n, ".") {
			continue
		}
		b, err := os.ReadFile(d.endedFile(id))
		if errors.Is(err, os.ErrNotExist) {
			continue // purged just now
		}
		var e EndedGraft
		if err == nil {
			_, err = checkForm(b, endedVersion)
		}
		if err == nil {
			err = json.Unmarshal(b, &e)
		}
		if err == nil && e.Graft != id {
			err = fmt.Errorf("it speaks of graft %q", e.Graft)
		}
		if err != nil {
			errs = append(errs, setAside("counts of an ended graft", d.endedFile(id), err))
			continue
		}
		out = append(out, e)
	}
	return out, errors.Join(errs...)
}

// Counted forgets what an ended graft did.
func (c *Client) Counted(graft string) error {
	err := os.Remove(c.dir().endedFile(graft))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// countsSoon asks for what a layer did, as statusSoon does for its rules.
func countsSoon(server *serverClient, id string) []FaultCount {
	answer := make(chan []FaultCount, 1)
	go func() {
		var out []FaultCount
		if err := server.call(callFaults, layerCall{Layer: id}, &out); err != nil {
			out = nil // it is just being made or taken off
		}
		answer <- out
	}()
	select {
	case out := <-answer:
		return out
	case <-time.After(time.Second):
		return nil
	}
}
