package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// Recovering is called before a person takes grafts off, and tells the next agent of
// them, if none runs: the last one may have been killed before it had remembered that
// it made them, and would carry labels and policies out again. With all, the kernel
// faults that ended with it are over too. An agent that runs knows by itself.
func (d Direct) Recovering(ctx context.Context, ids []string, all bool) error {
	dir := d.StateDir
	if dir == "" {
		dir = DefaultStateDir
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	if _, err := NewClient(dir).Health(ctx); !errors.Is(err, ErrNoAgent) {
		return nil // it may hang, and is there
	}
	m, perr, err := readMemory(dir)
	if err == nil {
		err = perr // another version's, perhaps: it is the agent's to set aside
	}
	if err == nil && m.unsettled() {
		var grafts []keeper.Graft
		grafts, _ = (&keeper.Client{StateDir: dir}).List(ctx) // who does not answer cannot be told to take anything off either
		grafts = slices.DeleteFunc(grafts, func(g keeper.Graft) bool { return !slices.Contains(ids, g.ID) })
		err = m.settle(grafts, all)
	}
	if err != nil {
		return fmt.Errorf("the next agent may carry labels and policies out again that are recovered now: %w", err)
	}
	return nil
}
