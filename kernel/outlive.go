package kernel

import (
	"errors"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

var errNotYet = errors.New("faults that outlive their process are not there yet")

// Adopt takes over a fault that Outliving found: it goes on as it was, with its
// counters and clock, and its events (also those since its process died) come here.
func (in *Injector) Adopt(Pinned) (*Armed, error) { return nil, errNotYet }

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
