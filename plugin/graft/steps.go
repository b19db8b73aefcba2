package graft

import (
	"slices"

	"github.com/faultgraft/faultgraft/tracer"
)

// Steps at which Step of the options is called, besides those of the tracer.
// Those after a change are there for a process that dies right then.
const (
	StepResolve  = "resolve"   // graft: before anything is looked up
	StepLayer    = "layer"     // graft: before the FUSE mount is made, attached nowhere
	StepServe    = "serve"     // graft: before the keeper gets it
	StepServed   = "served"    // graft: the layer answers
	StepMount    = "mount"     // graft: before the layer comes onto its place, with the target stopped
	StepLeft     = "left"      // graft: the mount below has left its propagation group, the layer is not there yet
	StepMounted  = "mounted"   // graft: the layer is live
	StepHandOver = "hand over" // graft, move: before the keeper gets the originals
	StepHanded   = "handed"    // graft, move: nothing is left to do
	StepUnmount  = "unmount"   // ungraft: before the layer is taken off, with the target stopped
	StepOff      = "off"       // ungraft: the layer is off, the mount below is not in its group again
	StepRejoined = "rejoined"  // ungraft: it is
	// Parts of laying a layer over "/", with the target stopped.
	StepTop    = "top"    // graft: the mount for newcomers lies on the root
	StepBottom = "bottom" // graft: the other one too, without what is mounted on the root
	StepCopied = "copied" // graft: with it; before the pivot
	// Parts of taking it off.
	StepCarried = "carried" // ungraft: what was mounted on the layer is on the root again
	StepRoots   = "roots"   // ungraft: nobody has the layer as root directory any more
)

// AttachSteps, DetachSteps and ReswapSteps list what Step is called with.
func AttachSteps() []string {
	return append(tracer.Steps(), StepResolve, StepLayer, StepServe, StepServed, StepMount, StepLeft, StepMounted, StepTop, StepBottom, StepCopied, StepHandOver, StepHanded)
}

// DetachSteps: see AttachSteps.
func DetachSteps() []string {
	return append(tracer.Steps(), StepUnmount, StepCarried, StepRoots, StepOff, StepRejoined)
}

// ReswapSteps: see AttachSteps.
func ReswapSteps() []string {
	return append(slices.DeleteFunc(tracer.Steps(), func(s string) bool { return s == tracer.StepLocks }), StepHandOver, StepHanded)
}
