package policies

import "github.com/faultgraft/faultgraft/failpoint"

// atPolicies is where tests make the agent die after something has happened to a
// policy: the file says it, the event log does, the containers are about to be
// looked at. test/e2e walks them.
var atPolicies = failpoint.Of("agent policies", "saved", "logged", "told")
