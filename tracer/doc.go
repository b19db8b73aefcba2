// Package tracer exchanges the files that running processes hold: open file
// descriptions behind descriptors, working and root directories, and memory
// maps. It stops the processes with ptrace(2), runs system calls inside them,
// and resumes them, all as one transaction with a deadline and a rollback.
//
// What is exchanged for what is the caller's choice, made through the
// functions of [Options]; the package knows nothing of file systems, mounts or
// faults. docs/swap.md tells how a swap works and what its limits are.
//
// 64-bit processes of x86-64 and arm64 can be swapped; elsewhere [Swap] refuses.
package tracer
