package keeper

import (
	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/plugin/graft"
)

// Where tests make these processes fail or die; test/process walks them all. The
// names say what has been done by then. A step has the point of the step before
// in front of it.
var (
	// Of the process that asks: a command, or the agent.
	atClient = failpoint.Of("client", "folder", "started", "ready", "answered")

	atStart = failpoint.Of("keeper start", "namespace", "folder", "listening", "ready")
	atGraft = failpoint.Of("keeper graft",
		"listed", "server", "swapper", "job", "layer", "served", "expected", "adopted", "result", "swapped", "rules", "covered", "active", "logged")
	// expire and stop-all begin with an ungraft, too.
	atUngraft = failpoint.Of("keeper ungraft", "reverting", "quiet", "swapper", "job", "result", "swapped", "settled", "logged")
	// A move of open files to where a rule can reach them is part of a change.
	atChange = failpoint.Of("keeper change", "planned", "united", "swapper", "job", "adopted", "result", "covered", "set", "timed", "logged")
	atEnd    = failpoint.Of("keeper end", "ended", "server", "folder")

	// Of a server that follows a dead one. "layer" and "taken" are passed for each layer.
	atFollow = failpoint.Of("server follow", "started", "holder", "layer", "taken", "restored", "rules", "claimed", "ended", "only", "resumed")

	// Of a server whose keeper was killed: another one asks for what there is to take off, and has it.
	atInherit = failpoint.Of("server inherit", "page", "taken")

	// Of a server that serves: it was asked to release what hangs.
	atServe = failpoint.Of("server", "release")

	// Of a state file, whoever writes it.
	atFile = failpoint.Of("file", "written", "renamed")

	graftSwap   = failpoint.Of("swapper graft", graft.AttachSteps()...)
	ungraftSwap = failpoint.Of("swapper ungraft", graft.DetachSteps()...)
	moveSwap    = failpoint.Of("swapper move", graft.ReswapSteps()...)
)

// points are the keeper's while a swapper is at work.
func (j job) points() failpoint.Steps {
	switch {
	case j.Detach:
		return atUngraft
	case len(j.Reswap) > 0:
		return atChange
	}
	return atGraft
}
