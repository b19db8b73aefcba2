package plugin

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// Whoever ends a control group (a service manager, a CI job) ends all that `inject` has started there: keeper, server and holder at
// once. Calls on the layer fail with ENOTCONN then, until somebody takes it off. The agent does.

const (
	// orphanLook is between two looks at the keepers' folders. One that is without a keeper at two of them has nobody who follows, or it hangs.
	orphanLook = 5 * time.Second
	// orphanPause is how long nothing is tried after what did not succeed.
	orphanPause = time.Minute
)

// orphanRecoverer finds and takes off what keepers left that were killed with all who would follow them; keeper.Client is one.
type orphanRecoverer interface {
	Abandoned() ([]string, error)
	RecoverOrphans(ctx context.Context, own bool) (keeper.OrphanRecovery, error)
}

var _ orphanRecoverer = (*keeper.Client)(nil)

// followOrphans takes off layers that nobody serves any more, until ctx ends: at once what an earlier agent may have met, and
// what comes later.
func (a *agent) followOrphans(ctx context.Context) {
	keepers, ok := a.opts.Grafter.(orphanRecoverer)
	if !ok {
		return
	}
	look := time.NewTicker(orphanLook)
	defer look.Stop()
	last := a.recoverOrphans(ctx, keepers, "")
	tried := time.Now()
	for seen := []string(nil); ; {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		gone, err := keepers.Abandoned()
		if err != nil {
			a.log.Warn("look for keepers that were killed", "err", err)
		}
		again := slices.ContainsFunc(gone, func(key string) bool { return slices.Contains(seen, key) })
		seen = gone
		if again && (last == "" || time.Since(tried) >= orphanPause) {
			last = a.recoverOrphans(ctx, keepers, last)
			tried = time.Now()
		}
	}
}

// recoverOrphans gives why something is left; empty: nothing is. told was said before.
func (a *agent) recoverOrphans(ctx context.Context, keepers orphanRecoverer, told string) (why string) {
	done, err := keepers.RecoverOrphans(ctx, false)
	for _, g := range done.Off {
		a.log.Warn("took off a layer that nobody served any more: all its processes were killed", "graft", g.ID, "path", g.Path, "pid", g.Target.PID)
	}
	left := done.Passed
	for _, l := range done.Left {
		left = append(left, l.String())
	}
	if err == nil && len(done.Left) == 0 { // else the folders tell that there is more to do
		_, err = keeper.Sweep(a.opts.StateDir)
	}
	why = strings.Join(left, "\n")
	if err != nil {
		why += "\n" + err.Error()
	}
	if why != "" && why != told && ctx.Err() == nil {
		a.log.Warn("layers that nobody serves are left", "left", left, "err", err)
	}
	return why
}
