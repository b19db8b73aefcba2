// Package policies keeps the FaultPolicies of a node: which containers each is
// for, when it acts, and what ends it. It touches no container: the agent tells
// the Store what containers there are, asks it what rules a container must have
// now, and tells it what became of them.
package policies
