package plugin

import "github.com/faultgraft/faultgraft/failpoint"

// Where tests make processes die; the names say what has been done by then. A step
// has the point of the step before in front of it.
var (
	// Of whoever stops the node or releases it; test/process walks them.
	atStop    = failpoint.Of("stop", "forbidden", "listed", "reverted")
	atRelease = failpoint.Of("release", "reopened", "lifted")

	// Of the agent; test/e2e walks them.
	atStart  = failpoint.Of("agent start", "folder", "swept", "adopted", "listening", "known")
	atApply  = failpoint.Of("agent apply", "recovered", "remembered", "changed", "grafted", "saved")
	atForget = failpoint.Of("agent forget", "saved")
	atCount  = failpoint.Of("agent count", "saved", "forgotten")
	atEnd    = failpoint.Of("agent end", "deaf", "disarmed", "rested")
)
