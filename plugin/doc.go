// Package plugin is the node agent: it learns of containers from NRI and from
// containerd's events, reads their labels and annotations, and keeps every
// container at what they ask for. All of it feeds one reconcile loop, which
// works on each container by itself: a slow one delays no other.
//
// The agent holds nothing that a target needs. Grafts live in keepers (package
// keeper), so the agent may stop, crash or be replaced at any time; the next
// one finds the grafts again.
package plugin
