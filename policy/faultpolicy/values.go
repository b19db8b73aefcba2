package faultpolicy

import (
	"errors"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// Mode says how many of the matching containers are chosen.
type Mode string

// The modes. Value is for the last three; percentages are rounded down.
const (
	ModeOne              Mode = "one"
	ModeAll              Mode = "all"
	ModeFixed            Mode = "fixed"              // Value containers, or all if there are fewer
	ModeFixedPercent     Mode = "fixed-percent"      // Value percent
	ModeRandomMaxPercent Mode = "random-max-percent" // a share from 0 to Value percent, drawn from the seed
)

// Values lists the modes.
func (Mode) Values() []string {
	return []string{string(ModeOne), string(ModeAll), string(ModeFixed), string(ModeFixedPercent), string(ModeRandomMaxPercent)}
}

// WhenNothingMatches says what applying does while no container matches.
type WhenNothingMatches string

// Wait keeps the policy for containers to come; Fail refuses it.
const (
	Wait WhenNothingMatches = "wait"
	Fail WhenNothingMatches = "fail"
)

// Values lists them.
func (WhenNothingMatches) Values() []string { return []string{string(Wait), string(Fail)} }

// Concurrency says what happens when a run is due while the one before it goes on.
type Concurrency string

// Forbid skips the run that is due; Replace ends the one that goes on and begins it.
const (
	Forbid  Concurrency = "forbid"
	Replace Concurrency = "replace"
)

// Values lists them.
func (Concurrency) Values() []string { return []string{string(Forbid), string(Replace)} }

// Operator is that of a Requirement.
type Operator string

// The operators.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Values lists them.
func (Operator) Values() []string {
	return []string{string(In), string(NotIn), string(Exists), string(DoesNotExist)}
}

// Duration is a time as rules write it: 100ms, 1m30s. It is above 0 wherever it is given.
type Duration time.Duration

// String gives the form of rules.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText gives the form of rules.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the form of rules.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := policy.ParseDuration(string(text))
	var wrong *policy.SyntaxError
	if errors.As(err, &wrong) { // what names the field is said by who knows it
		wrong.Message = strings.TrimPrefix(wrong.Message, "time=")
	}
	*d = Duration(v)
	return err
}
