package hooks

import (
	"fmt"
	"slices"
	"strings"
)

// Poststart is the only phase of a container's life in which grafts are made.
// The container's mount namespace is then complete. The specification calls its
// hooks just after the user's program has started; runc 1.5 calls them at the end
// of `create`, before (libcontainer/container_linux.go, start).
const Poststart = "poststart"

// refusedPhases are the other phases that config.json has hooks for.
var refusedPhases = map[string]string{
	"prestart":        early,
	"createRuntime":   early,
	"createContainer": early,
	"startContainer":  "it runs inside the container, where faultgraft and its state directory cannot be reached",
	"poststop":        "the container has ended; its layers went with it",
}

const early = "it runs before pivot_root: the container's mounts are not where they will be, so a layer would be mounted over the wrong tree or be hidden"

// CheckPhase says why a phase cannot be used; nil: it can.
func CheckPhase(name string) error {
	if name == Poststart {
		return nil
	}
	for phase, why := range refusedPhases {
		if strings.EqualFold(phase, name) {
			return fmt.Errorf("a %s hook cannot graft in this version: %s; list the hook under hooks.%s in config.json and give it the argument %s", phase, why, Poststart, Poststart)
		}
	}
	return fmt.Errorf("%q is not a phase of an OCI runtime hook; use %s", name, Poststart)
}

// Phases are the names that CheckPhase knows, the usable one first.
func Phases() []string {
	names := []string{Poststart}
	for p := range refusedPhases {
		names = append(names, p)
	}
	slices.Sort(names[1:])
	return names
}
