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

	// Of the agent around kernel faults, beside those of package kernel; test/kernel walks both.
	atKernelRequest = failpoint.Of("kernel request", "armed")
	atKernelApply   = failpoint.Of("kernel apply", "disarmed", "remembered", "armed", "saved")
	atKernelArm     = failpoint.Of("kernel agent arm", "opened", "armed", "held", "logged")
	atKernelEnd     = failpoint.Of("kernel agent end", "disarmed", "unlisted", "logged", "counted", "over")
	atKernelAdopt   = failpoint.Of("kernel adopt", "ended", "taken", "held")
	atKernelFound   = failpoint.Of("kernel found", "ended", "logged")
	atKernelClose   = failpoint.Of("kernel close", "closed", "logged", "counted")
	atKernelEvent   = failpoint.Of("kernel event", "written")
)
