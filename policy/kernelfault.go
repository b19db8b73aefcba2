package policy

import (
	"encoding/json"
	"fmt"
	"syscall"
)

// KernelFault is what a `kernel` rule does: a function of the kernel answers
// with an error instead of doing its work.
type KernelFault struct {
	// Hook is what fails.
	Hook Hook `json:"hook"`
	// Where is a predicate over the parameters of what fails; empty matches each
	// call. Its language is that of package kernel/predicate.
	Where string `json:"where,omitempty"`
	// Within is a call chain, the outermost function first: the hook fails only
	// while the thread runs inside the last of them, directly or not, that inside
	// the one before it, and so on.
	Within []Frame `json:"within,omitempty"`
	// Error is what is answered.
	Error Errno `json:"error"`
	// Caller narrows the fault to some processes. Exe is not there: it cannot be
	// decided inside the kernel. Comm are names, or beginnings with a * after them.
	Caller Caller `json:"caller,omitzero"`
	// Backend is the only one to be used: fmod_ret, override or lsm; empty is the first that works.
	Backend string `json:"backend,omitempty"`
	// Stack records the kernel stack with each injection.
	Stack bool `json:"stack,omitempty"`
}

// Hook is a hook point.
type Hook struct {
	// Kind is slab, page, bio, function, syscall or lsm.
	Kind string `json:"kind"`
	// Name is of the function, system call or LSM hook; else it is empty.
	Name string `json:"name,omitempty"`
}

// String gives the form of rules: slab, syscall:mount.
func (h Hook) String() string {
	if h.Name == "" {
		return h.Kind
	}
	return h.Kind + ":" + h.Name
}

// Frame is one function of a call chain.
type Frame struct {
	Function string `json:"function"`
	// Predicate is over the function's parameters; empty matches each call.
	Predicate string `json:"predicate,omitempty"`
	// Parameters is the function's parameter list in C, as KernelChaos has it. It
	// is accepted and not needed: the kernel's type information has them.
	Parameters string `json:"parameters,omitempty"`
}

// String gives the form of rules: open_ctree, d_alloc_parallel(name->len > 5).
func (f Frame) String() string {
	switch {
	case f.Parameters != "":
		return f.Function + "(" + f.Parameters + ")(" + f.Predicate + ")"
	case f.Predicate != "":
		return f.Function + "(" + f.Predicate + ")"
	}
	return f.Function
}

// Errno is an errno that JSON has by its name.
type Errno syscall.Errno

// String gives the name.
func (e Errno) String() string { return ErrnoName(syscall.Errno(e)) }

// MarshalJSON writes the name.
func (e Errno) MarshalJSON() ([]byte, error) { return json.Marshal(e.String()) }

// UnmarshalJSON reads a name.
func (e *Errno) UnmarshalJSON(b []byte) error {
	var name string
	if err := json.Unmarshal(b, &name); err != nil {
		return err
	}
	n, ok := ParseErrno(name)
	if !ok {
		return fmt.Errorf("unknown errno %q", name)
	}
	*e = Errno(n)
	return nil
}
