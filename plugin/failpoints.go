package plugin

import "github.com/faultgraft/faultgraft/plugin/failpoint"

// Where tests make a process die that stops the node or releases it; the names say
// what has been done by then. test/process walks them.
var (
	atStop    = failpoint.Of("stop", "forbidden", "listed", "reverted")
	atRelease = failpoint.Of("release", "reopened", "lifted")
)
