package tracer

// Steps lists what Options.Step is called with, StepLocks only where Options.GuardLocks is set.
func Steps() []string {
	return []string{StepScan, StepReplace, StepSeize, StepStopped, StepInject, StepStage, StepCommit, StepLocks, StepCheck, StepRelease}
}
