// Package hooks makes faultgraft an OCI runtime hook, for runtimes that work
// without containerd and NRI (runc, crun, podman): it reads the state that the
// runtime writes to a hook's standard input, takes the rules from the
// container's annotations and grafts what they ask for.
//
// A container is never stopped by what its annotations say, nor by a graft that
// cannot be made: both are reported, and the hook succeeds.
//
// The formats are those of the OCI runtime specification 1.x:
// https://github.com/opencontainers/runtime-spec/blob/v1.3.0/runtime.md#state
// and config.md#posix-platform-hooks.
package hooks
