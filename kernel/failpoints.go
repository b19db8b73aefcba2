package kernel

import "github.com/faultgraft/faultgraft/failpoint"

// Where tests make a process die that arms or ends a fault; the names say what has
// been done by then. TestDeathAtEachStep walks them, and test/kernel does in the agent.
var (
	atLoad = failpoint.Of("kernel load", "maps", "loaded", "watched", "attached")
	atArm  = failpoint.Of("kernel arm", "entered")
	// Of a fault that outlives: between "entered" and "linked" it is in force, and still ends with its process.
	atPin  = failpoint.Of("kernel pin", "folder", "maps", "chain", "entered", "linked")
	atDrop = failpoint.Of("kernel end", "left", "unlinked", "emptied", "unpinned")
)
