package plugin

import "github.com/faultgraft/faultgraft/plugin/failpoint"

// Where tests make an agent die; the names say what has been done by then. Those
// of grafts, changes and policies are walked by test/e2e, with real containers,
// those of a stop by test/process.
var (
	atAgentGraft   = failpoint.Of("agent graft", "remembered", "grafted", "recorded")
	atAgentChange  = failpoint.Of("agent change", "remembered", "changed", "recorded")
	atAgentUngraft = failpoint.Of("agent ungraft", "begun", "recovered", "recorded")

	atStop    = failpoint.Of("stop", "forbidden", "listed", "reverted")
	atRelease = failpoint.Of("release", "reopened", "lifted")
)
