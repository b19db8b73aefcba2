// Package recorded is what test/soak/recorder has seen, and how others read it.
package recorded

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Status is what the recorder has seen so far. The file that bears it is up to Interval old.
type Status struct {
	// MadeAt is when all of it was so.
	MadeAt Time `json:"madeAt"`
	// Operations were carried out, in both folders.
	Operations int64 `json:"operations"`
	// Faulty counts rounds in DIR/faulty; Faults the errors there, by name.
	Faulty int64             `json:"faulty"`
	Faults map[string]uint64 `json:"faults"`
	// FaultyCall is when the last call that met an error there was made.
	FaultyCall Time `json:"faultyCall"`
	// Wrong is what must not have been, the first of it.
	Wrong []string `json:"wrong"`
}

// Interval is how often the file is replaced.
const Interval = 200 * time.Millisecond

// Time is one of CLOCK_MONOTONIC, which nobody sets and all processes share (time_namespaces(7) apart), in nanoseconds.
type Time int64

// Now is the time now.
func Now() Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every Linux has the clock
	}
	return Time(ts.Nano())
}

// Total is how many errors there were in DIR/faulty.
func (s Status) Total() (n uint64) {
	for _, c := range s.Faults {
		n += c
	}
	return n
}

// Read gives what the file says; before there is one, nothing.
func Read(path string) (s Status, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		err = fmt.Errorf("the recorder's status: %w", err)
	}
	return s, err
}

// ReadNow gives what is so now or a little later: what the file says may be older than what was just done to the program.
func ReadNow(path string, patience time.Duration) (Status, error) {
	now := Now()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		s, err := Read(path)
		if err != nil || s.MadeAt >= now {
			return s, err
		}
		if time.Now().After(end) {
			return s, fmt.Errorf("the recorder has said nothing for %s", patience)
		}
	}
}
