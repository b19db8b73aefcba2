package kernel

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// DefaultPinDir is where faults that outlive their process are pinned.
const DefaultPinDir = "/sys/fs/bpf/faultgraft"

// Options are those of an Injector.
type Options struct {
	// Log gets what is worth a line; nil is slog.Default.
	Log *slog.Logger
	// PinDir is a directory in bpffs for faults that outlive this process. It is
	// made when the first is armed. Empty is DefaultPinDir.
	PinDir string
	// OnEvent is called for each injection, from one goroutine, in the order in
	// which the kernel wrote them. Nil: nobody wants to know.
	OnEvent func(Event)
}

// Fault is one kernel fault for one target.
type Fault struct {
	// ID names the fault among those of an Injector, and in its events.
	ID string
	// Rule has Kernel set. Its seed was chosen (policy.Rule.EnsureSeed).
	Rule policy.Rule
	// Cgroup is where the fault holds, with all below. The root is refused.
	Cgroup Cgroup
	// Age is how long the rule's clock (delay, pulses, ttl) has run already.
	Age time.Duration
	// Outlive keeps the fault in the kernel when the Injector is closed or its
	// process dies, until the rule's ttl ends. It is found again by Outliving.
	Outlive bool
}

// Counters are what happened under one fault in its cgroup.
type Counters struct {
	// Evaluated is how often the hook point was reached in the cgroup, where it may be failed at all.
	Evaluated uint64 `json:"evaluated"`
	// Matched is how many of them the rule is about: awake, caller, predicate and call chain fit.
	Matched uint64 `json:"matched"`
	// Injected is on how many of those the rule fired.
	Injected uint64 `json:"injected"`
	// Dropped is how many injections have no event, because the buffer was full.
	Dropped uint64 `json:"dropped,omitempty"`
}

// Event is one injection.
type Event struct {
	Time  time.Time `json:"time"`
	Fault string    `json:"fault"`
	Rule  string    `json:"rule"`
	// Seq is the number of the matching operation under the fault, from 1.
	Seq uint64 `json:"seq"`
	// PID and TID are the process and thread as the host numbers them.
	PID  int    `json:"pid"`
	TID  int    `json:"tid"`
	Comm string `json:"comm"`
	// Cgroup is the id of the cgroup that the thread was in, which may be below the fault's.
	Cgroup uint64 `json:"cgroup"`
	// Hook is the rule's hook point, Function the kernel function that failed for it, Backend the way.
	Hook     string `json:"hook"`
	Function string `json:"function"`
	Backend  string `json:"backend"`
	// Error is the errno's name.
	Error string `json:"error"`
	// Stack are the kernel functions, the failed one first, if the rule asks for them.
	Stack []string `json:"stack,omitempty"`
}

// Injector holds kernel faults. It may be used from any number of goroutines.
type Injector struct {
	options Options
}

// Armed is a fault that is in force.
type Armed struct {
	fault Fault
}

var errNotYet = errors.New("kernel faults are not there yet")

// New makes an Injector. It loads nothing until the first fault.
func New(o Options) (*Injector, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.PinDir == "" {
		o.PinDir = DefaultPinDir
	}
	return &Injector{options: o}, nil
}

// Close ends all faults but those that outlive.
func (in *Injector) Close() error { return nil }

// Arm puts a fault in force. Either all of it is, when Arm returns, or nothing
// is and the error says why.
func (in *Injector) Arm(context.Context, Fault) (*Armed, error) { return nil, errNotYet }

// Adopt takes over a fault that Outliving found: it goes on as it was, with its
// counters and clock, and its events (also those since its process died) come here.
func (in *Injector) Adopt(Pinned) (*Armed, error) { return nil, errNotYet }

// ID is the fault's.
func (a *Armed) ID() string { return a.fault.ID }

// Fault is what was armed.
func (a *Armed) Fault() Fault { return a.fault }

// Backend is the one that was taken.
func (a *Armed) Backend() string { return "" }

// Functions are the kernel functions that are failed.
func (a *Armed) Functions() []string { return nil }

// Note says in words what the backend covers where it stands for another hook
// point, as sb_mount for the mount system call; else it is empty.
func (a *Armed) Note() string { return "" }

// Counters are the fault's so far. They can be read after Disarm too.
func (a *Armed) Counters() (Counters, error) { return Counters{}, errNotYet }

// Ends is when the rule's ttl is over, by a clock that runs on while the machine is suspended.
func (a *Armed) Ends() time.Time { return time.Time{} }

// Expired reports whether the ttl is over. The kernel injects nothing any more
// then; Disarm frees what the fault still occupies.
func (a *Armed) Expired() bool { return false }

// Disarm ends the fault, also one that outlives. When it returns, no new
// operation is failed. It may be called more than once.
func (a *Armed) Disarm() error { return nil }

// Resolution is how a rule would be carried out here.
type Resolution struct {
	Hook string `json:"hook"`
	// Backend is the one that is expected to be taken; which one is is only known when programs are loaded.
	Backend string `json:"backend"`
	// Functions are the kernel functions that would be failed.
	Functions []string `json:"functions"`
	// Note says in words what the backend covers where it stands for another hook point; else it is empty.
	Note string `json:"note,omitempty"`
	// Chain is how the call chain would be watched; empty without one.
	Chain string `json:"chain,omitempty"`
}

// Check says how a rule would be carried out by the running kernel, from its
// type information, symbols and configuration. It loads nothing and needs no
// privileges. An error in a predicate is a *policy.SyntaxError.
func Check(policy.Rule) (Resolution, error) { return Resolution{}, errNotYet }

// Functions are the kernel functions that a rule with hook=function:NAME can
// fail here, sorted. The error says why they are not known.
func Functions() ([]string, error) { return nil, errNotYet }

// Pinned is a fault that has outlived the process that armed it.
type Pinned struct {
	ID        string      `json:"id"`
	Rule      policy.Rule `json:"rule"`
	Cgroup    Cgroup      `json:"cgroup"`
	Backend   string      `json:"backend"`
	Functions []string    `json:"functions"`
	Started   time.Time   `json:"started"`
	Ends      time.Time   `json:"ends"`
	Counters  Counters    `json:"counters"`
	dir       string
}

// Outliving lists the faults pinned in a directory of bpffs, also those whose
// ttl is over and that only wait to be ended. No directory is no faults.
func Outliving(pinDir string) ([]Pinned, error) { return nil, errNotYet }

// End takes the fault out of the kernel.
func (p Pinned) End() error { return errNotYet }
